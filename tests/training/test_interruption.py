"""Signals during a training: its state is saved, and it ends with the same bits after the same call."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import LoaderError
from convnext_deploy.system import interruption
from convnext_deploy.system.interruption import Interrupted, interruptible
from convnext_deploy.training.checkpoint_store import HISTORY, TrainingStore
from tests.shared import heavy_except
from tests.training.fake_batches import FakeBatches, flat_weights, run_fit, small_network

OPTIONS: dict[str, Any] = {"ema_decay": 0.9, "head_only_epochs": 0.5}
STEPS, EPOCHS = 4, 3


class Loading(FakeBatches):
    """Batches at one of which something happens while it is loaded."""

    def __init__(self, happens: Callable[[], object] | None, at: int) -> None:
        super().__init__(STEPS)
        self.happens, self.at = happens, at

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start):
            if self.happens is not None and STEPS * batch.epoch + batch.first_row // self.batch_size == self.at:
                self.happens()
            yield batch


def train(folder: Path, where: str = "", at: int = -1, happens: Callable[[], object] | None = None) -> nn.Module:
    """Train; `happens` is called in step `at`, or while its batch is loaded, or in evaluation number `at`."""
    model = small_network(drop_path_rate=0.3, head_dropout=0.2)
    count = {"step": 0, "evaluation": 0}

    def call(name: str) -> None:
        if happens is not None and where == name and count[name] == at:
            happens()
        count[name] += 1

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        call("step")
        return nn.functional.cross_entropy(network(batch.images), batch.labels)

    def evaluate(network: nn.Module) -> dict[str, float]:
        network.eval()
        call("evaluation")
        return {"validation_top1": next(iter(network.parameters())).sum().item()}

    batches = Loading(happens if where == "loading" else None, at)
    store = TrainingStore(folder, "key", 3600.0)
    run_fit(model, batches, objective=objective, evaluate=evaluate, store=store, **OPTIONS)
    return model


def history(folder: Path) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads((folder / HISTORY).read_text())
    return [{name: figure for name, figure in row.items() if name != "images_per_s"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("whole")
    return flat_weights(train(folder)), history(folder)


def send(signum: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(signum)


QUICK = (("step", 11, 12), ("loading", 6, 6), ("evaluation", 3, 8))
CASES = (*QUICK, ("step", 0, 1), ("step", 5, 6), ("step", 3, 4), ("loading", 0, 0), ("loading", 4, 4), ("evaluation", 0, 4),
         ("evaluation", 5, 12))  # fmt: skip


@pytest.mark.parametrize("case", heavy_except(QUICK, CASES), ids=str)
def test_signal_saves_the_training_which_then_ends_with_the_same_bits(
    case: tuple[str, int, int], whole: tuple[Tensor, list[dict[str, float]]], tmp_path: Path
) -> None:
    where, at, step = case
    with interruptible(), pytest.raises(Interrupted) as ended:
        train(tmp_path, where, at, send(signal.SIGTERM))
    assert (ended.value.code, ended.value.saved) == (143, f"student is saved at step {step}")
    state = TrainingStore(tmp_path, "key").load()
    assert state is not None
    assert state["step"] == step
    model = train(tmp_path)
    assert torch.equal(flat_weights(model), whole[0])
    assert history(tmp_path) == whole[1]


def test_signals_are_answered_as_before_where_no_command_line_answers_them(tmp_path: Path) -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: told.append(signum))
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "step", 2, send(signal.SIGINT))
        with pytest.raises(Interrupted):  # whoever answers it, the training is not done
            train(tmp_path, "step", 2, send(signal.SIGTERM))
        assert told == [signal.SIGTERM]
        state = TrainingStore(tmp_path, "key").load()
        assert state is not None
        assert state["step"] == 6
    finally:
        signal.signal(signal.SIGTERM, before)


def test_second_signal_does_not_wait_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_S", 0.0)
    reached = []

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)

    with interruptible(), pytest.raises(Interrupted):
        train(tmp_path, "step", 5, twice)
    assert reached == [1]


def test_the_same_signal_from_a_terminal_and_a_launcher_is_one(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    with interruptible(), pytest.raises(Interrupted) as ended:
        train(tmp_path, "step", 5, twice)
    assert (ended.value.code, ended.value.saved) == (130, "student is saved at step 6")


def test_training_is_saved_when_a_process_that_loads_images_dies(
    whole: tuple[Tensor, list[dict[str, float]]], tmp_path: Path
) -> None:
    def die() -> None:
        raise LoaderError("a process that loads images was killed")

    with pytest.raises(LoaderError):
        train(tmp_path, "loading", 6, die)
    state = TrainingStore(tmp_path, "key").load()
    assert state is not None
    assert state["step"] == 6
    assert torch.equal(flat_weights(train(tmp_path)), whole[0])


@pytest.mark.heavy
def test_a_signal_between_the_last_write_and_the_end_of_the_archive_does_not_abort_the_process(tmp_path: Path) -> None:
    program = """
import gc, pathlib, sys, torch
from convnext_deploy.system.interruption import Interrupted
from convnext_deploy.training.checkpoint_store import TrainingStore

def leave(*_):
    raise Interrupted(15)

torch.serialization._open_zipfile_writer_buffer.__exit__ = leave
store = TrainingStore(pathlib.Path(sys.argv[1]), "key")
try:
    store.save({"weights": torch.zeros(1000)})
except Interrupted as error:
    code = error.code
gc.collect()  # by now the writer is gone, after its file
sys.exit(code)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "")
    assert list(tmp_path.iterdir()) == []
