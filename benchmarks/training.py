"""Training throughput against timm's own model in a plain loop with timm's optimizer: same batch, dtype and images, interleaved.

    python benchmarks/training.py [--model atto] [--image-size 32] [--batch-size 128] [--autocast off|bf16] [--out FILE.json]

Ours is the package's training loop as every verb runs it (`training.fit`), with its progress display, checks of the loss and
optimizer groups. timm's is what a user writes: forward, loss, backward, `timm.optim` AdamW without decay on norms and biases,
as it comes and with model and images in channels-last memory. After every `--steps` steps of ours each of the others does as
many on the same batches; the figure is the median over rounds of the peer's time divided by ours in the same round, with the 95
% interval of that median (`ratios.median_ratio`). Above 1.00 ours is faster. Decoding and augmentation are not in it: both
get the same tensors; what the package's own augmentation of small images costs is printed as a share of a step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # timm exports it without saying so
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.datasets import ArrayImages
from convnext_deploy.data.kept_pixels import LARGEST_SIDE
from convnext_deploy.data.loaders import Batch, BatchPlan, TrainingBatches
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.models.variants import build_model, resolve_variant
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.fit import fit
from convnext_deploy.training.schedule import Schedule
from convnext_deploy.training.scoring import Scoring

CLASSES = 100
# arXiv 2201.03545, table 5
PAPER = Augmentation(
    augmentation_policy="randaugment",
    randaugment_ops=1,
    randaugment_magnitude=27,
    random_erasing_probability=0.25,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)


class FixedBatches:
    """The same few batches in every epoch: what `fit` uses of `TrainingBatches`."""

    device = "cpu"

    def __init__(self, count: int, batch_size: int, image_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch_size = batch_size
        shape = (batch_size, 3, image_size, image_size)
        self.batches = [
            Batch(
                torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last),
                torch.randint(CLASSES, (batch_size,), generator=generator),
            )
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield them from `start` on."""
        yield from self.batches[start:]


def plain_loop(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], autocast: torch.dtype | None
) -> Callable[[], float]:
    """Return a function that trains on the batches once and returns its seconds."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    model.train()

    def epoch() -> float:
        started = time.perf_counter()
        for images, labels in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        return time.perf_counter() - started

    return epoch


def seconds_per_batch(batch_size: int, image_size: int, augmentation: Augmentation) -> float:
    """Return how long the package takes to augment a batch of small images that are decoded already, the median of 20."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20 * batch_size, image_size, image_size, 3), dtype=np.uint8)
    images = ArrayImages(pixels, rng.integers(CLASSES, size=len(pixels)))
    preprocess = default_preprocess(image_size)
    batches = TrainingBatches(images, preprocess, BatchPlan(batch_size, CLASSES, augmentation))
    times = []
    started = time.perf_counter()
    for _ in batches.epoch(0):
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    return float(np.median(times))


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="atto")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--autocast", choices=["off", "bf16"], default="off")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    variant = resolve_variant(arguments.model)
    autocast = torch.bfloat16 if arguments.autocast == "bf16" else None
    batches = FixedBatches(arguments.steps, arguments.batch_size, arguments.image_size)
    plain = [(batch.images.contiguous(), batch.labels) for batch in batches.batches]
    last = [(batch.images, batch.labels) for batch in batches.batches]
    peers = {
        "timm": plain_loop(timm.create_model(variant, num_classes=CLASSES), plain, autocast),
        "timm channels-last": plain_loop(
            timm.create_model(variant, num_classes=CLASSES).to(memory_format=torch.channels_last), last, autocast
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    rounds = 0

    def run_peers(_: nn.Module) -> dict[str, float]:
        nonlocal rounds
        order = list(peers)
        for name in order if rounds % 2 else reversed(order):
            seconds[name].append(peers[name]())
        rounds += 1
        return {}

    history = fit(
        build_model(ModelSpec(variant, CLASSES)),
        cast(TrainingBatches, batches),
        lambda network, batch: F.cross_entropy(network(batch.images), batch.labels),
        Schedule(
            epochs=arguments.rounds + 1,
            base_learning_rate=1e-4 * 4096 / arguments.batch_size,
            final_learning_rate_ratio=1.0,
            weight_decay=0.05,
            autocast=autocast,
        ),
        Execution(),
        description="ours",
        scoring=Scoring(run_peers),
    )
    images = arguments.steps * arguments.batch_size
    ours = np.array([images / row["images_per_s"] for row in history])[1:]  # the first round warms up
    print(f"{variant}, {arguments.image_size} pixels, batch {arguments.batch_size}, autocast {arguments.autocast}")
    print(f"ours: {images / np.median(ours):.1f} images/s")
    results: dict[str, Any] = {}
    for name, values in seconds.items():
        theirs = np.array(values)[1:]
        ratio, low, high = median_ratio(theirs, ours)
        print(f"{name}: {images / np.median(theirs):.1f} images/s, ours is {ratio:.2f}x [{low:.2f}, {high:.2f}]")
        results[name] = {"images_per_s": images / np.median(theirs), "ratio": ratio, "interval": [low, high]}
    shares: dict[str, float] = {}
    if arguments.image_size <= LARGEST_SIDE:
        for name, augmentation in (("crop and flip", Augmentation()), ("all of the paper's", PAPER)):
            spent = seconds_per_batch(arguments.batch_size, arguments.image_size, augmentation)
            shares[name] = spent / (arguments.batch_size * float(np.median(ours)) / images)
            print(f"augmentation, {name}: {1000 * spent:.1f} ms a batch, {100 * shares[name]:.1f} % of a step")
    if arguments.out is not None:
        record = {
            "settings": {name: str(value) for name, value in vars(arguments).items() if name != "out"},
            "ours_images_per_s": images / np.median(ours),
            "peers": results,
            "augmentation_share_of_step": shares,
            "environment": describe_environment(),
            "timm": timm.__version__,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
