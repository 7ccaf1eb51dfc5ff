"""Batches of fixed random images, for tests of the training loop alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from convnext_deploy.data.loaders import Batch, TrainingBatches
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.fit import fit
from convnext_deploy.training.schedule import Schedule
from convnext_deploy.training.scoring import Scoring
from convnext_deploy.training.step import Objective

CLASSES = 3


class KilledError(Exception):
    """What a test raises in the place of a signal."""


class FakeBatches:
    """What `fit` uses of `TrainingBatches`: batch `k` of epoch `e` depends on `e` and `k` alone."""

    device = "cpu"

    def __init__(self, batches: int = 4, batch_size: int = 6) -> None:
        self.batches, self.batch_size = batches, batch_size
        self.given: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for index in range(start, self.batches):
            generator = torch.Generator().manual_seed(1000 * epoch + index)
            self.given.append((epoch, index))
            images = torch.randn(self.batch_size, 3, 32, 32, generator=generator)
            labels = torch.randint(CLASSES, (self.batch_size,), generator=generator)
            yield Batch(images, labels, epoch, index * self.batch_size)


def small_network(**options: Any) -> ConvNeXt:
    """Return a network of a few thousand weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNeXt((1, 1, 2, 1), (8, 8, 16, 16), num_classes=CLASSES, layer_scale_init=0.1, **options)


def run_fit(model: nn.Module, batches: FakeBatches | None = None, **changes: Any) -> list[dict[str, float]]:
    """Train for three epochs with cross-entropy unless `changes` say otherwise."""
    options: dict[str, Any] = {
        "objective": lambda network, batch: nn.functional.cross_entropy(network(batch.images), batch.labels),
        "warmup_epochs": 0.5,
    }
    return fit_with(model, cast(TrainingBatches, batches or FakeBatches()), **{**options, **changes})


def fit_with(
    model: nn.Module, batches: TrainingBatches, objective: Objective, **changes: Any
) -> list[dict[str, float]]:
    """Call `fit` with three quick epochs; `changes` may be fields of its records as well as its own arguments.

    `evaluate` and `choose` are those of its `Scoring`.
    """
    scoring = Scoring(changes.pop("evaluate", None), choose=changes.pop("choose", None))
    schedule = Schedule(3, 2.0, final_learning_rate_ratio=0.1, weight_decay=0.05)
    execution = Execution(seed=5)
    own = {name: changes.pop(name) for name in list(changes) if hasattr(schedule, name)}
    how = {name: changes.pop(name) for name in list(changes) if hasattr(execution, name)}
    return fit(
        model,
        batches,
        objective,
        dataclasses.replace(schedule, **own),
        dataclasses.replace(execution, **how),
        **{"description": "student", "scoring": scoring, **changes},
    )


def killed_at(step: int | None) -> Objective:
    """Return cross-entropy that raises `KilledError` in the place of the loss of a step, counted from 0; None: of no step."""
    steps = 0

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        nonlocal steps
        if steps == step:
            raise KilledError
        steps += 1
        return nn.functional.cross_entropy(network(batch.images), batch.labels)

    return objective


def flat_weights(model: nn.Module) -> Tensor:
    """Return all parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
