"""The best epoch by images set aside is the result, and a training that waits for a better one goes on as if never killed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from convnext_deploy.metrics.epochs import Figures, best_epoch, result_epoch, score_of
from convnext_deploy.system.progress import SilentProgress
from convnext_deploy.training.checkpoint_store import BEST, HISTORY, TrainingStore
from convnext_deploy.training.scoring import EpochLines, epochs_between
from tests.shared import heavy_except
from tests.training.fake_batches import FakeBatches, KilledError, flat_weights, killed_at, run_fit, small_network

SCORES = (0.2, 0.6, 0.5, 0.6, 0.9, 0.9)
"""Of the averaged weights after each epoch: with a patience of two the fourth is the last, and the second the best."""


class Said(SilentProgress):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def train(
    folder: Path, *, kill_at: int | None = None, patience: int = 2, progress: Any = None
) -> tuple[nn.Module, FakeBatches, list[dict[str, float]]]:
    """Train with averaged weights, of which the score depends on the epoch alone; be killed at the loss of a step."""
    model, batches = small_network(drop_path_rate=0.3), FakeBatches(2)

    def choose(network: nn.Module) -> dict[str, float]:
        averaged, epoch = network is not model, batches.given[-1][0]
        return {"validation_top1": SCORES[epoch] if averaged else 1 - SCORES[epoch], "validation_loss": 1.0}

    history = run_fit(
        model,
        batches,
        objective=killed_at(kill_at),
        choose=choose,
        evaluate=lambda network: {"validation_top1": 0.5, "validation_loss": 1.0},
        store=TrainingStore(folder, "key", 0.0),
        epochs=6,
        ema_decay=0.5,
        patience=patience,
        progress=progress or SilentProgress(),
    )
    return model, batches, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, list[str], Path]:
    folder, said = tmp_path_factory.mktemp("whole"), Said()
    model, batches, history = train(folder, progress=said)
    assert [row["ema_selection_top1"] for row in history] == [0.2, 0.6, 0.5, 0.6]  # 0.9 is never seen
    assert len(batches.given) == 8
    assert json.loads((folder / HISTORY).read_text(encoding="utf-8")) == history
    assert best_epoch(history, "selection") == result_epoch(history) == 1
    best = small_network()
    best.load_state_dict(load_file(folder / BEST))
    assert torch.equal(flat_weights(model), flat_weights(best))
    return flat_weights(model), said.lines, folder


def test_patience_ends_a_training_with_the_best_epoch_of_the_average(
    whole: tuple[Tensor, list[str], Path], tmp_path: Path
) -> None:
    weights, lines, folder = whole
    pattern = r"student: epoch 1/6: loss \d\.\d+, validation top-1 50.00 %, selection top-1 20.00 %, [\d,.]+ images/s, "
    assert re.fullmatch(pattern + r"0:00:\d\d left", lines[0])
    assert lines[-1] == "student: epoch 2 of 4 is the result (selection top-1 60.00 %)"
    model, batches, _ = train(folder)  # it has ended, and does not go on
    assert batches.given == []
    assert torch.equal(flat_weights(model), weights)
    model, batches, history = train(tmp_path, patience=3)
    assert (len(history), result_epoch(history)) == (6, 4)  # of equal ones the first
    assert not torch.equal(flat_weights(model), weights)


@pytest.mark.parametrize("kill_at", heavy_except((5,), range(8)))
def test_patience_ends_with_the_same_bits_when_killed_at_any_step(
    kill_at: int, whole: tuple[Tensor, list[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, kill_at=kill_at)
    model, batches, history = train(tmp_path)
    assert torch.equal(flat_weights(model), whole[0])
    assert (len(batches.given), len(history)) == (8 - kill_at, 4)


def test_without_patience_the_last_epoch_is_the_result() -> None:
    assert result_epoch([{"validation_top1": 0.9}, {"validation_top1": 0.1}]) == 1
    assert result_epoch([]) is None


def test_epochs_are_compared_by_what_is_right_for_the_network() -> None:
    assert score_of({"validation_map": 0.4, "validation_loss": 0.3}) == (0.4, -0.3)
    features: list[Figures] = [
        {"validation_loss": 0.3},
        {"validation_loss": 0.1},
        {"validation_loss": None},
        {"train_loss": 1.0},
    ]
    assert best_epoch(features) == 1
    assert best_epoch([{"validation_top1": 0.5, "validation_loss": loss} for loss in (0.3, 0.2, float("nan"))]) == 1
    assert best_epoch([{"validation_top1": 0.9, "ema_validation_top1": score} for score in (0.3, 0.4, 0.4)]) == 1
    assert best_epoch([{"train_loss": 1.0}]) is None


@pytest.mark.parametrize(
    ("train_images", "validation_images", "networks", "epochs"),
    [(50_000, 10_000, 1, 1), (50_000, 10_000, 2, 1), (1437, 360, 2, 1), (200, 1000, 1, 9), (200, 10_000, 1, 84)],
)
def test_scoring_adds_at_most_a_fifth_to_a_training(
    train_images: int, validation_images: int, networks: int, epochs: int
) -> None:
    assert epochs_between(train_images, validation_images, networks) == epochs
    assert validation_images * networks / epochs <= 0.2 * 3 * train_images


def test_lines_come_once_a_second_and_after_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.4, 0.8, 1.5, 1.7])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    said = Said()
    lines = EpochLines(said, "student", 4, 0.0)
    rows = [{"train_loss": 1.0, "images_per_s": 2.5, "validation_map": score} for score in (0.1, 0.3, 0.2, 0.25)]
    for number in range(1, 5):
        lines.say(rows[:number])
    assert said.lines == [
        "student: epoch 1/4: loss 1.000, validation mAP 10.00 %, 2.5 images/s, 0:00:01 left",
        "student: epoch 3/4: loss 1.000, validation mAP 20.00 %, best mAP 30.00 % after epoch 2, 2.5 images/s, 0:00:00 left",
        "student: epoch 4/4: loss 1.000, validation mAP 25.00 %, best mAP 30.00 % after epoch 2, 2.5 images/s",
    ]
