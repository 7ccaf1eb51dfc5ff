"""What the command line keeps for other runs, writes for TensorBoard, and refuses in one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.data.datasets import FolderImages
from convnext_deploy.stages import distill, training_setup
from tests.cli.conftest import Outcome, call
from tests.training.test_events import assert_same_history, read_events
from tests.weights import PREPROCESS, write_weights

SHORT = ("--image-size", "64", "--epochs", "2", "--batch-size", "18", "--workers", "0", "--device", "cpu")


@pytest.fixture
def command(image_folder: Path, tmp_path: Path) -> tuple[str | Path, ...]:
    teacher = write_weights(
        tmp_path / "teacher.safetensors", ModelSpec("test_convnext", 3), ("cat", "dog", "owl"), PREPROCESS, seed=1
    )
    return "distill", "--teacher-checkpoint", teacher, "--student", "test_convnext2", "--data", image_folder, *SHORT


def sha_of(out: Path) -> str:
    return read_artifact(out / "stages" / "student").sha256


def test_distill_with_caches_asks_nothing_twice_and_ends_with_the_same_bits(
    command: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, cached = tmp_path / "cache", (*command, "--teacher-cache", "--augmentation-seed", "5")
    for name, options in (("alone", ()), ("first", ("--cache-dir", cache))):
        assert call(*cached, "--out", tmp_path / name, *options).code == 0
    assert len(list((tmp_path / "alone" / "cache" / "teachers").glob("*/epoch-000[01].bin"))) == 2
    assert not (tmp_path / "alone" / "cache" / "pixels").exists()  # few enough for the memory
    assert len(list((cache / "teachers").glob("*/epoch-000[01].bin"))) == 2
    assert len(list((cache / "pixels").glob("*.npy"))) == 1
    assert not (tmp_path / "first" / "cache").exists()
    decoded: list[Path] = []
    load = FolderImages.load

    def count(self: FolderImages, index: int) -> Image.Image:
        decoded.append(self.paths[index])
        return load(self, index)

    monkeypatch.setattr(FolderImages, "load", count)
    # each run lets it look at the validation images once, which is `each`; training asks for `raw`
    monkeypatch.setattr(distill.Teachers, "raw", lambda *_: pytest.fail("the teacher was asked again"))
    for name, seed in (("again", "0"), ("other", "1")):
        outcome = call(*cached, "--out", tmp_path / name, "--cache-dir", cache, "--seed", seed)
        assert outcome.code == 0, outcome.err
        assert f"the teacher's predictions are kept in {cache / 'teachers'}" in outcome.err
    assert {path.parts[-3] for path in decoded} == {"val"}
    assert sha_of(tmp_path / "alone") == sha_of(tmp_path / "first") == sha_of(tmp_path / "again")
    assert sha_of(tmp_path / "other") != sha_of(tmp_path / "again")


def test_distill_writes_events_of_the_history(command: tuple[str | Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(*command, "--out", out).code == 0
    assert not (out / "tensorboard").exists()
    out = tmp_path / "events"
    assert call(*command, "--out", out, "--tensorboard").code == 0
    history = json.loads((out / "checkpoints" / "student" / "history.json").read_text(encoding="utf-8"))
    assert_same_history(read_events(out / "tensorboard" / "student"), history)
    assert sha_of(out) == sha_of(tmp_path / "out")


def assert_one_line(outcome: Outcome, *parts: str) -> None:
    assert (outcome.code, outcome.out) == (1, "")
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.err.endswith(f"{lines[0]}\n")
    assert len(lines) == 1
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in lines[0]


def test_caches_that_cannot_be_written_end_in_one_line(command: tuple[str | Path, ...], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    outcome = call(*command, "--out", tmp_path / "a", "--cache-dir", tmp_path / "taken")
    assert_one_line(outcome, "the cache folder", f"cannot be written ({tmp_path / 'taken'} is a file)", "--cache-dir")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cache").write_text("a file")
    outcome = call(*command, "--out", tmp_path / "b", "--teacher-cache")
    assert_one_line(outcome, "the teacher's predictions cannot be written to", str(tmp_path / "b"), "--cache-dir")
    assert not (tmp_path / "b" / "stages" / "student").exists()


def test_what_is_not_installed_is_named_in_one_line_before_any_training(
    command: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(training_setup, "fit", lambda *_, **__: pytest.fail("it trains"))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    outcome = call(*command, "--out", tmp_path / "a", "--tensorboard")
    assert_one_line(outcome, 'need the package tensorboard: pip install "convnext_deploy[tensorboard]".')
    assert not (tmp_path / "a").exists()
    monkeypatch.setenv("CXX", "/nonexistent")
    outcome = call(*command, "--out", tmp_path / "b", "--compile")
    assert_one_line(outcome, "compile = true needs a C++ compiler, and there is no '/nonexistent', which CXX asks for")
