"""Runs with a teacher cache that are killed, find no room, or follow one another."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from convnext_deploy.config.fit import FitConfig
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import OutputError
from convnext_deploy.stages import distill, teachers
from convnext_deploy.system.progress import SilentProgress
from convnext_deploy.training.checkpoint_store import TrainingStore
from convnext_deploy.training.teacher_cache import TeacherCache
from tests.shared import heavy_except
from tests.stages.conftest import FIT, ROWS, Train
from tests.training.fake_batches import KilledError
from tests.weights import assert_equal_states

STEPS = 9
REPEATING = dataclasses.replace(FIT, augmentation_epochs=2, mixup_alpha=0.8, ema_decay=0.9)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Steps, counted over all runs, after whose loss the process ends; the last part of a batch is where a step ends."""
    steps: list[int] = []
    make, done = teachers.distillation_objective, 0

    def create(*arguments: Any, **options: Any) -> Any:
        objective = make(*arguments, **options)

        def compute(network: nn.Module, batch: Batch) -> Tensor:
            nonlocal done
            loss = objective(network, batch)
            if done in steps:
                steps.remove(done)
                raise KilledError
            done += 1
            return loss

        return compute

    monkeypatch.setattr(distill, "distillation_objective", create)
    yield steps
    assert steps == []


def store(folder: Path) -> TrainingStore:
    return TrainingStore(folder / "state", "key", 0.0)


@pytest.mark.parametrize(
    "fit", [pytest.param(FIT, marks=pytest.mark.heavy), REPEATING], ids=["own crops", "repeated crops"]
)
@pytest.mark.parametrize("cache", heavy_except(("kept", "damaged"), ("kept", "lost", "damaged", "complete")))
def test_distill_killed_with_a_cache_ends_with_the_same_bits(
    fit: FitConfig, cache: str, train: Train, kill_at: list[int], tmp_path: Path
) -> None:
    """Stochastic depth draws from a random state that is saved: that the teacher is opened again must not change it."""
    expected, history = train(fit, cache="whole")
    if cache == "complete":
        shutil.copytree(tmp_path / "whole", tmp_path / "cache")
    kill_at += [STEPS + 1, STEPS + 4]
    for _ in range(2):
        with pytest.raises(KilledError):
            train(fit, store=store(tmp_path))
        files = sorted((tmp_path / "cache" / "teachers").glob("*/*.bin"))
        assert files
        if cache == "lost":
            shutil.rmtree(tmp_path / "cache")
        elif cache == "damaged":
            for file in files:
                os.truncate(file, file.stat().st_size - 5)
    state, found = train(fit, store=store(tmp_path))
    assert_equal_states(state, expected)
    assert found == history


def test_distill_killed_while_it_repeats_epochs_asks_the_teacher_no_more(
    train: Train, kill_at: list[int], asked: list[int], tmp_path: Path
) -> None:
    kill_at += [7]
    with pytest.raises(KilledError):
        train(REPEATING, store=store(tmp_path))
    assert sum(asked) == 2 * ROWS
    asked.clear()
    train(REPEATING, store=store(tmp_path))
    assert asked == []


def with_free(monkeypatch: pytest.MonkeyPatch, free: int, seen: list[Path]) -> None:
    def usage(path: Path) -> Usage:
        assert Path(path).is_dir()
        seen.append(Path(path))
        return Usage(10 * free, 9 * free, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_distill_refuses_before_training_what_the_disk_has_no_room_for(
    train: Train, asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Path] = []
    size = 3 * 30 * (3 * 2 + 4)  # three batches of ten an epoch, and six images that are left out
    with_free(monkeypatch, size - 1, seen)
    monkeypatch.setattr(distill, "fit_network", lambda *_: pytest.fail("it trains"))
    folder = re.escape(str(tmp_path / "cache" / "teachers"))
    text = rf"^the teacher's predictions need 0\.0009 MB in {folder}/\w+, where 0\.000899 MB are free; [^\n]+--cache-dir\.$"
    with pytest.raises(OutputError, match=text):
        train(dataclasses.replace(FIT, batch_size=10))
    assert seen == [tmp_path]  # the nearest folder that there is
    assert asked == []
    assert not (tmp_path / "cache").exists()


def test_distill_counts_only_what_is_missing_as_needed(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    epoch = ROWS * (3 * 2 + 4)
    with_free(monkeypatch, 3 * epoch, [])
    train()
    with_free(monkeypatch, 0, [])
    train()
    train(dataclasses.replace(FIT, epochs=2, augmentation_epochs=50))
    with pytest.raises(
        OutputError, match=r"^the teacher's predictions need 0\.00036 MB in [^\n]+, where 0 MB are free"
    ):
        train(dataclasses.replace(FIT, epochs=4))
    train(dataclasses.replace(FIT, epochs=4, augmentation_epochs=3))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 MB"), (1_234_567, "1.23 MB"), (999_400_000, "999 MB"), (2_500_000_000, "2.5 GB")]
)
def test_distill_says_where_the_predictions_are_and_how_large(
    size: int, text: str, train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []

    class Listening(SilentProgress):
        def say(self, message: str) -> None:
            said.append(message)

    monkeypatch.setattr(TeacherCache, "size_bytes", lambda *_: size)
    monkeypatch.setattr(distill, "fit_network", lambda *_: [])
    train(progress=Listening())
    folder = re.escape(str(tmp_path / "cache" / "teachers"))
    assert re.fullmatch(
        rf"student: the teacher's predictions are kept in {folder}/\w{{32}}, {re.escape(text)} when complete", said[0]
    )
