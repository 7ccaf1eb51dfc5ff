"""How long a step takes here: a few real ones of a network with fresh weights, before hours are spent on the others."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.models.variants import build_model
from convnext_deploy.training.optimizer import create_optimizer
from convnext_deploy.training.schedule import autocast_dtype


@dataclass(frozen=True)
class StepTimes:
    """Seconds: of an image in a training step, of it without gradients, and of the optimizer in a step of any size."""

    image: float
    forward: float
    optimizer: float


def rehearse(spec: ModelSpec, image_size: ImageSize, fit: FitConfig, device: str, images: int) -> StepTimes:
    """Measure steps with so many images; fresh weights and noise take as long as any others. Random states stay as they are.

    Raises: DeployError: if this machine cannot train as asked.
    """
    dtype = autocast_dtype(fit.autocast, device)
    with torch.random.fork_rng([device] if device == "cuda" else []):
        network = build_model(spec, gradient_checkpointing=fit.gradient_checkpointing).to(device)
        batch = torch.randn(images, spec.in_channels, *sides_of(image_size), device=device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(images, dtype=torch.long, device=device)
        optimizer = create_optimizer(network, 0.0, 0.0)

        def train() -> None:
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                F.cross_entropy(network(batch).float(), labels).backward()

        @torch.no_grad()
        def predict() -> None:
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                network(batch)

        network.train()
        of_image = seconds_of(train, device) / images
        of_optimizer = seconds_of(optimizer.step, device)
        network.eval()
        return StepTimes(of_image, seconds_of(predict, device) / images, of_optimizer)


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Return how long something takes that was done once before."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
