"""How long a step takes here: a few real ones of a network with fresh weights, before hours are spent on the others."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.models.variants import build_model
from convnext_deploy.system.random_state import forked_random
from convnext_deploy.training.schedule import autocast_dtype

_ADAMW_TO_LERP = 7 / 3
"""AdamW reads four tensors of the weights' size and writes three, a lerp reads two and writes one: both wait for memory."""


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
    with forked_random(device):
        network = build_model(spec, gradient_checkpointing=fit.gradient_checkpointing).to(device)
        batch, dtype = _noise(spec, image_size, device, images), autocast_dtype(fit.autocast, device)
        labels = torch.zeros(images, dtype=torch.long, device=device)

        def train() -> None:
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                F.cross_entropy(network(batch).float(), labels).backward()

        network.train()
        of_image = seconds_of(train, device) / images
        network.zero_grad(set_to_none=True)
        of_optimizer = _ADAMW_TO_LERP * _lerp_seconds(network, device)
        return StepTimes(of_image, _forward_seconds(network, batch, dtype), of_optimizer)


def rehearse_teacher(spec: ModelSpec, image_size: ImageSize, fit: FitConfig, device: str, images: int) -> float:
    """Return the seconds that an image takes without gradients in the training that `fit` describes; otherwise as `rehearse`."""
    with forked_random(device):
        batch = _noise(spec, image_size, device, images)
        return _forward_seconds(build_model(spec).to(device), batch, autocast_dtype(fit.autocast, device))


def _noise(spec: ModelSpec, image_size: ImageSize, device: str, images: int) -> Tensor:
    batch = torch.randn(images, spec.in_channels, *sides_of(image_size), device=device)
    return batch.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _forward_seconds(network: nn.Module, batch: Tensor, dtype: torch.dtype | None) -> float:
    network.eval()
    device = batch.device.type

    def predict() -> None:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            network(batch)

    return seconds_of(predict, device) / len(batch)


@torch.no_grad()
def _lerp_seconds(network: nn.Module, device: str) -> float:
    """Return how long it takes to move a copy of the weights towards the weights; PyTorch's optimizers take seconds to import."""
    weights = [parameter.detach() for parameter in network.parameters()]
    copies = [weight.clone() for weight in weights]
    return seconds_of(lambda: torch._foreach_lerp_(copies, weights, 0.5), device)


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
