"""TensorBoard events: what TensorBoard reads back is the history, whatever happened to the training."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.run_stages import create_settings
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.stages import distill, train
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.checkpoint_store import HISTORY, TrainingStore
from convnext_deploy.training.tensorboard import TensorBoardEvents, check_tensorboard
from tests.training.fake_batches import KilledError, killed_at, run_fit, small_network

ROWS: list[dict[str, float]] = [
    {"epoch": epoch, "train_loss": 1 / epoch, "learning_rate": 1e-3 * epoch, "validation_top1": 0.1 * epoch}
    for epoch in (1, 2, 3, 4, 5)
]


def read_events(folder: Path) -> list[dict[str, float]]:
    """Return what TensorBoard shows of a run, as rows of a history."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            row = rows.setdefault(event.step, {"epoch": event.step})
            assert tag not in row, f"step {event.step} of {tag} is there twice"
            row[tag] = event.value
    return [rows[step] for step in sorted(rows)]


def assert_same_history(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)  # events hold float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tensorboard" / "student"


def write(folder: Path, rows: list[dict[str, float]]) -> None:
    events = TensorBoardEvents(folder)
    for row in rows:
        events.write(row)


def test_events_are_those_of_the_rows(folder: Path) -> None:
    write(folder, ROWS)
    assert_same_history(read_events(folder), ROWS)
    assert len(list(folder.iterdir())) == 1


def test_events_can_be_read_after_each_epoch(folder: Path) -> None:
    events = TensorBoardEvents(folder)
    assert not folder.exists()
    for count, row in enumerate(ROWS, 1):
        events.write(row)
        assert_same_history(read_events(folder), ROWS[:count])


def test_events_of_an_epoch_that_is_done_again_take_the_place_of_the_first(folder: Path) -> None:
    other = [{**row, "train_loss": 7.0} for row in ROWS]
    write(folder, other[:3])
    write(folder, ROWS[1:4])  # killed in the third epoch, whose state and that of the second were lost
    assert_same_history(read_events(folder), [other[0], *ROWS[1:4]])
    write(folder, ROWS[:2])  # another training in the same folder, and a shorter one
    assert_same_history(read_events(folder), ROWS[:2])


def test_events_go_on_after_a_record_that_was_cut(folder: Path) -> None:
    write(folder, ROWS[:2])
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    write(folder, ROWS[1:])
    assert_same_history(read_events(folder), ROWS)


def fit_with_events(tmp_path: Path, kill_at: int | None = None) -> None:
    """Train for three epochs of four steps; raise `KilledError` when a step computes its loss."""
    events = TensorBoardEvents(tmp_path / "tensorboard" / "student")
    store = TrainingStore(tmp_path, "key", 1e9, events)  # a state after each epoch only
    run_fit(small_network(), objective=killed_at(kill_at), store=store, evaluate=lambda _: {"validation_top1": 0.5})


@pytest.mark.parametrize("kills", [(), (2,), (5, 3), (4, 4)])
def test_events_are_the_history_of_a_training_that_was_killed(
    kills: tuple[int, ...], folder: Path, tmp_path: Path
) -> None:
    for kill_at in kills:
        with pytest.raises(KilledError):
            fit_with_events(tmp_path, kill_at)
    fit_with_events(tmp_path)
    history = json.loads((tmp_path / HISTORY).read_text(encoding="utf-8"))
    assert len(history) == 3
    assert_same_history(read_events(folder), history)


def test_events_are_the_history_when_killed_between_events_and_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(store: TrainingStore, *_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStore, "save_meanwhile", fail)
        with pytest.raises(KilledError):
            fit_with_events(tmp_path)
    assert len(read_events(folder)) == 1
    fit_with_events(tmp_path)
    assert_same_history(read_events(folder), json.loads((tmp_path / HISTORY).read_text(encoding="utf-8")))


@pytest.fixture
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    for stage in (train, distill):
        monkeypatch.setattr(stage, "fit_network", lambda *_: pytest.fail("it trains"))


WITHOUT = r"^TensorBoard events need the package tensorboard: pip install \"convnext_deploy\[tensorboard\]\"\.$"
VERBS: dict[str, Callable[..., Any]] = {
    "train": functools.partial(api.train, "test_convnext"),
    "distill": functools.partial(api.distill, "test_convnext", "test_convnext2"),
}


@pytest.mark.usefixtures("_no_tensorboard")
def test_create_settings_refuses_events_without_the_package(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=WITHOUT):
        check_tensorboard()
    with pytest.raises(BackendUnavailableError, match=WITHOUT):
        create_settings("run", "x", tmp_path, Execution(), ExecutionOptions(tensorboard=True))
    assert not create_settings("run", "x", tmp_path, Execution(), ExecutionOptions()).tensorboard


@pytest.mark.usefixtures("_no_tensorboard")
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_verbs_refuse_events_without_the_package_before_they_train(
    verb: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    data, execution = DataOptions(image_folder, image_size=64), ExecutionOptions("cpu", 0, tensorboard=True)
    with pytest.raises(BackendUnavailableError, match=WITHOUT):
        verb(out=tmp_path / "out", data=data, execution=execution)
    assert not (tmp_path / "out").exists()
