"""States are copied at once and written while the training goes on; what fails is told, and nothing is half written."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convnext_deploy.errors import OutputError
from convnext_deploy.training.checkpoint_store import BEST, LAST, TrainingStore
from tests.training.fake_batches import flat_weights, run_fit, small_network


def test_a_state_is_that_of_its_step_though_the_weights_change_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write, may_write = TrainingStore(tmp_path, "key"), torch.save, threading.Event()

    def wait(*arguments: Any) -> None:
        assert may_write.wait(30)
        write(*arguments)

    monkeypatch.setattr(torch, "save", wait)
    weights = torch.ones(3)
    state = {"step": 1, "model": {"w": weights}, "history": [{"loss": 0.5}], "optimizer": {"state": {0: (weights,)}}}
    store.save_meanwhile(state)
    weights.fill_(7.0)
    assert not (tmp_path / LAST).exists()
    may_write.set()
    store.finish()
    found = TrainingStore(tmp_path, "key").load()
    assert found is not None
    assert found["model"]["w"].tolist() == found["optimizer"]["state"][0][0].tolist() == [1.0, 1.0, 1.0]
    assert found["history"] == [{"loss": 0.5}]


def test_the_best_weights_are_written_meanwhile_and_before_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, may_write, states = TrainingStore(tmp_path, "key"), threading.Event(), list[bool]()

    def wait(*arguments: Any) -> None:
        assert may_write.wait(30)
        states.append((tmp_path / LAST).exists())
        save_file(*arguments)

    monkeypatch.setattr("convnext_deploy.training.checkpoint_store.save_file", wait)
    weights = torch.ones(3)
    store.save_meanwhile({"step": 1}, {"w": weights})
    weights.fill_(7.0)
    assert list(tmp_path.glob("*.safetensors")) == []
    may_write.set()
    store.finish()
    assert load_file(tmp_path / BEST)["w"].tolist() == [1.0, 1.0, 1.0]
    found = store.load()
    assert found is not None
    assert found["step"] == 1
    store.save_meanwhile(None, {"w": weights})  # between two states
    store.finish()
    assert load_file(tmp_path / BEST)["w"].tolist() == [7.0, 7.0, 7.0]
    assert states == [False, True]


def test_a_state_that_cannot_be_written_ends_the_training_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    before = threading.active_count()
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match=r"last\.pt"):
        run_fit(small_network(), store=TrainingStore(tmp_path, "key", 0.0))
    assert [path.name for path in tmp_path.iterdir() if "last" in path.name] == []
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("waits_s", "writes_s", "least_s"), [(0.5, 0.9, 60), (1.5, 0.0, 60), (3.0, 0.0, 200), (0.0, 31.0, 150)]
)
def test_states_are_the_rarer_the_more_they_cost(
    waits_s: float, writes_s: float, least_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("convnext_deploy.training.checkpoint_store.time.monotonic", lambda: now)
    store = TrainingStore(tmp_path, "key")
    store._waited_s, store._wrote_s = waits_s, writes_s
    now = least_s - 0.1
    assert not store.is_due()
    now = least_s + 0.1
    assert store.is_due()


def test_states_in_the_background_change_no_weight(tmp_path: Path) -> None:
    with_states, without = small_network(), small_network()
    run_fit(with_states, store=TrainingStore(tmp_path, "key", 0.0), ema_decay=0.9)
    run_fit(without, ema_decay=0.9)
    assert torch.equal(flat_weights(with_states), flat_weights(without))
