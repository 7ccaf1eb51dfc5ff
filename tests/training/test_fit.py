"""The training loop: it learns, repeats itself exactly and says where it diverged."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import Batch, BatchPlan, TrainingBatches
from convnext_deploy.errors import DeployError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.system import random_state
from convnext_deploy.system.progress import SilentProgress
from convnext_deploy.training.optimizer import learning_rate_at
from convnext_deploy.training.schedule import autocast_dtype
from convnext_deploy.training.step import Objective
from tests.training.fake_batches import fit_with


def network() -> ConvNeXt:
    """A network of a few thousand weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNeXt((1, 1, 1, 1), (8, 8, 16, 16), num_classes=3, drop_path_rate=0.2, layer_scale_init=0.1)


def cross_entropy(model: nn.Module) -> Objective:
    return lambda network, batch: F.cross_entropy(network(batch.images), batch.labels)


def train(model: nn.Module, data: Data, objective: Objective | None = None, **changes: Any) -> list[dict[str, float]]:
    batches = TrainingBatches(data.train, default_preprocess(32), BatchPlan(12, 3, Augmentation(0.5), seed=1))
    options: dict[str, Any] = {"base_learning_rate": 3.0, "warmup_epochs": 1.0, **changes}
    return fit_with(model, batches, objective or cross_entropy(model), **options)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: figure for name, figure in row.items() if name != "images_per_s"} for row in history]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_fit_lowers_the_loss_and_leaves_the_model_evaluating(small_data: Data) -> None:
    model = network()
    history = train(model, small_data, epochs=12)
    assert not model.training
    assert [entry["epoch"] for entry in history] == list(range(1, 13))
    assert history[0]["train_loss"] > 0.8
    assert history[-1]["train_loss"] < 0.25 * history[0]["train_loss"]
    assert all(entry.keys() == {"epoch", "train_loss", "learning_rate", "images_per_s"} for entry in history)


def test_fit_trains_in_training_mode_and_reports_the_mean_loss(small_data: Data) -> None:
    model = network().eval()
    losses: list[float] = []

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        assert model.training
        loss = F.cross_entropy(network(batch.images), batch.labels)
        losses.append(loss.item())
        return loss

    history = train(model, small_data, objective)
    means = [sum(losses[start : start + 3]) / 3 for start in (0, 3, 6)]
    assert [entry["train_loss"] for entry in history] == pytest.approx(means)


def test_fit_gives_the_same_weights_when_repeated_whatever_the_global_seed(small_data: Data) -> None:
    first, second, other = network(), network(), network()
    torch.manual_seed(1)
    history = train(first, small_data)
    torch.manual_seed(2)
    assert without_times(train(second, small_data)) == without_times(history)
    assert torch.equal(weights(first), weights(second))
    train(other, small_data, seed=6)
    assert not torch.equal(weights(first), weights(other))


def test_fit_leaves_the_global_random_state_alone(small_data: Data) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    train(network(), small_data)
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_leaves_the_global_random_state_alone_when_it_fails(small_data: Data) -> None:
    before = torch.get_rng_state()
    with pytest.raises(DeployError):
        train(network(), small_data, lambda network, batch: network(batch.images).sum() * torch.nan)
    assert torch.equal(torch.get_rng_state(), before)


def test_trainings_in_threads_give_what_each_gives_alone(small_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [network(), network()]
    for seed, model in enumerate(alone):
        train(model, small_data, seed=seed)
    monkeypatch.setattr(random_state, "PATIENCE_S", 0.01)
    begun, second_came, said = Event(), Event(), list[str]()
    together = [network(), network()]

    class Told(SilentProgress):
        """Notes what is said."""

        def say(self, message: str) -> None:
            said.append(message)
            second_came.set()

    def first(network: nn.Module, batch: Batch) -> Tensor:
        begun.set()
        assert second_came.wait(60)
        return F.cross_entropy(network(batch.images), batch.labels)

    def second(network: nn.Module, batch: Batch) -> Tensor:
        second_came.set()
        return F.cross_entropy(network(batch.images), batch.labels)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(train, together[0], small_data, first, seed=0)
        assert begun.wait(60)
        other = pool.submit(train, together[1], small_data, second, seed=1, progress=Told())
        one.result(), other.result()
    for model, expected in zip(together, alone, strict=True):
        assert torch.equal(weights(model), weights(expected))
    assert "another thread of this process is training; this one waits" in said[0]


def test_fit_follows_the_learning_rate_schedule(small_data: Data) -> None:
    model = network()
    parameter = next(model.parameters())
    steps: list[Tensor] = []

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        steps.append(parameter.detach().clone())
        return parameter.sum()

    history = train(model, small_data, objective, weight_decay=0.0)
    steps.append(parameter.detach().clone())
    # The gradient is 1 everywhere, so that Adam moves every weight by the learning rate itself.
    moved = [(before - after).mean().item() for before, after in itertools.pairwise(steps)]
    peak = 3.0 * 12 / 4096
    expected = [learning_rate_at(step, 9, 3, peak, 0.1) for step in range(9)]
    assert moved == pytest.approx(expected, rel=1e-4)
    assert [entry["learning_rate"] for entry in history] == pytest.approx([expected[2], expected[5], expected[8]])


def test_fit_warms_up_for_at_most_half_of_the_steps(small_data: Data) -> None:
    history = train(network(), small_data, epochs=4, warmup_epochs=20.0)
    peak = 3.0 * 12 / 4096
    assert history[1]["learning_rate"] == pytest.approx(peak)
    assert history[3]["learning_rate"] == pytest.approx(0.1 * peak)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fit_names_step_and_learning_rate_when_loss_is_not_finite(small_data: Data, value: float) -> None:
    model = network()
    seen: list[int] = []

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        seen.append(len(seen))
        return F.cross_entropy(network(batch.images), batch.labels) * (value if len(seen) == 5 else 1.0)

    with pytest.raises(DeployError) as caught:
        train(model, small_data, objective)
    rate = learning_rate_at(4, 9, 3, 3.0 * 12 / 4096, 0.1)
    message = str(caught.value)
    assert f"student: the loss is {value} at step 4 (learning rate {rate:.2e})" in message
    assert "base_learning_rate" in message
    assert "\n" not in message


def test_fit_names_the_learning_rate_when_training_really_diverges(small_data: Data) -> None:
    with pytest.raises(DeployError, match=r"the loss is (nan|inf) at step \d+ \(learning rate \d"):
        train(network(), small_data, base_learning_rate=1e24, warmup_epochs=0.0)


@dataclass
class CountingProgress:
    """Keeps what is reported."""

    total: int = 0
    steps: int = 0
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[CountingProgress]:
        self.total += total
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps
        self.notes.append(note)

    def say(self, message: str) -> None:
        raise AssertionError(message)


def test_fit_reports_the_images_of_every_step(small_data: Data) -> None:
    progress = CountingProgress()
    train(network(), small_data, progress=progress)
    assert (progress.total, progress.steps, len(progress.notes)) == (9 * 12, 9 * 12, 9)
    assert re.fullmatch(r"epoch 3/3 loss \d\.\d{3}", progress.notes[-1])


def test_fit_runs_the_objective_under_autocast_and_keeps_float32_weights(small_data: Data) -> None:
    model = network()
    dtypes: set[torch.dtype] = set()

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        logits = network(batch.images)
        dtypes.add(logits.dtype)
        return F.cross_entropy(logits.float(), batch.labels)

    train(model, small_data, objective, epochs=1, autocast=torch.bfloat16)
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_autocast_dtype_obeys_bf16_and_off() -> None:
    assert autocast_dtype("bf16", "cpu") == torch.bfloat16
    assert autocast_dtype("off", "cpu") is None


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="needs Linux's list of CPU features")
def test_autocast_dtype_is_bfloat16_where_the_cpu_multiplies_it() -> None:
    words = set(Path("/proc/cpuinfo").read_text().split())
    native = bool(words & {"avx512_bf16", "amx_bf16"})
    assert autocast_dtype("auto", "cpu") == (torch.bfloat16 if native else None)
