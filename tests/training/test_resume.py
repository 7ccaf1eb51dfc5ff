"""A training that was killed goes on as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from convnext_deploy.training.checkpoint_store import BEST, HISTORY, LAST, TrainingStore
from tests.shared import heavy_except
from tests.training.fake_batches import FakeBatches, KilledError, flat_weights, killed_at, run_fit, small_network

OPTIONS: dict[str, Any] = {"ema_decay": 0.9, "gradient_clip_norm": 0.5, "layer_decay": 0.9, "head_only_epochs": 0.5}


def train(folder: Path, *, kill_at: int | None = None, **options: Any) -> tuple[nn.Module, FakeBatches]:
    """Train a network with stochastic depth and dropout; raise `KilledError` when step `kill_at` computes its loss."""
    model = small_network(drop_path_rate=0.3, head_dropout=0.2)
    batches = FakeBatches()
    store = TrainingStore(folder, options.pop("key", "key"), options.pop("save_every_s", 0.0))
    run_fit(model, batches, objective=killed_at(kill_at), store=store, **{**OPTIONS, **options})
    return model, batches


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return flat_weights(train(tmp_path_factory.mktemp("whole"))[0])


@pytest.mark.parametrize("kill_at", heavy_except((0, 5, 10), range(12)))
def test_fit_ends_with_the_same_bits_when_killed_at_any_step(
    kill_at: int, uninterrupted: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, kill_at=kill_at)
    model, batches = train(tmp_path)
    assert torch.equal(flat_weights(model), uninterrupted)
    assert len(batches.given) == 12 - kill_at


def test_fit_ends_with_the_same_bits_when_killed_many_times(uninterrupted: Tensor, tmp_path: Path) -> None:
    for _ in range(5):
        with pytest.raises(KilledError):
            train(tmp_path, kill_at=2)
    model, batches = train(tmp_path)
    assert torch.equal(flat_weights(model), uninterrupted)
    assert len(batches.given) == 2


def test_fit_repeats_what_was_done_since_the_last_state(uninterrupted: Tensor, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, kill_at=6, save_every_s=1e9)  # a state after each epoch of four steps only
    model, batches = train(tmp_path, save_every_s=1e9)
    assert torch.equal(flat_weights(model), uninterrupted)
    assert batches.given[0] == (1, 0)


def test_fit_trains_nothing_when_the_training_was_finished(uninterrupted: Tensor, tmp_path: Path) -> None:
    train(tmp_path)
    model, batches = train(tmp_path)
    assert batches.given == []
    assert torch.equal(flat_weights(model), uninterrupted)
    assert not model.training


@pytest.mark.parametrize(
    "damage", heavy_except(("another key", "truncated"), ("another key", "truncated", "no file of torch", "gone"))
)
def test_fit_starts_anew_when_the_state_is_not_its_own(damage: str, uninterrupted: Tensor, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, kill_at=7, key="other" if damage == "another key" else "key")
    last = tmp_path / LAST
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:-200])
    elif damage == "no file of torch":
        last.write_text("not a state", encoding="utf-8")
    elif damage == "gone":
        last.unlink()
    model, batches = train(tmp_path)
    assert batches.given[0] == (0, 0)
    assert torch.equal(flat_weights(model), uninterrupted)


def test_fit_restores_random_state_of_the_caller(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_fit_keeps_history_and_the_best_weights(tmp_path: Path) -> None:
    scores = iter([0.2, 0.9, 0.4])
    weights: list[Tensor] = []

    def evaluate(network: nn.Module) -> dict[str, float]:
        weights.append(flat_weights(network))
        return {"validation_top1": next(scores)}

    model = small_network()
    history = run_fit(model, evaluate=evaluate, store=TrainingStore(tmp_path, "key"))
    assert json.loads((tmp_path / HISTORY).read_text(encoding="utf-8")) == history
    assert [row["validation_top1"] for row in history] == [0.2, 0.9, 0.4]
    best = small_network()
    best.load_state_dict(load_file(tmp_path / BEST))
    assert torch.equal(flat_weights(best), weights[1])
    assert not torch.equal(flat_weights(model), weights[1])


def test_fit_judges_the_best_by_the_average_when_there_is_one(tmp_path: Path) -> None:
    figures = iter([0.9, 0.1, 0.3, 0.5, 0.2, 0.4])  # weights and average of three epochs: the second average is best
    averages: list[Tensor] = []

    def evaluate(network: nn.Module) -> dict[str, float]:
        averages.append(flat_weights(network))
        return {"validation_top1": next(figures)}

    history = run_fit(small_network(), evaluate=evaluate, ema_decay=0.9, store=TrainingStore(tmp_path, "key"))
    assert [row["ema_validation_top1"] for row in history] == [0.1, 0.5, 0.4]
    best = small_network()
    best.load_state_dict(load_file(tmp_path / BEST))
    assert torch.equal(flat_weights(best), averages[3])


def test_store_leaves_the_old_state_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrainingStore(tmp_path, "key")
    store.save({"step": 1})

    def fail(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        store.save({"step": 2})
    found = TrainingStore(tmp_path, "key").load()
    assert found is not None
    assert found["step"] == 1
