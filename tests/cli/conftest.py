"""The command line in this process, with its exit code and both of its outputs."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.cli import main
from tests.shared import make_once

FAILING_RECIPE = """
name = "failing"
[[stages]]
kind = "train"
name = "guess"
gate = { min_top1 = 1.0 }
[stages.model]
name = "test_convnext2"
image_size = 32
[stages.fit]
epochs = 1
batch_size = 16
base_learning_rate = 1e-9
warmup_epochs = 0
"""


@dataclass(frozen=True)
class Outcome:
    """What a call of the command line left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path) -> Outcome:
    """Run the command line; an exception that it lets through fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["convnext-deploy", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_nothing_half_written(folder: Path) -> None:
    """Check that every artifact below a folder is whole and that nothing of an unfinished one is left."""
    left = [
        path
        for path in folder.rglob(".*")
        if path.name.endswith((".partial", ".old")) or path.name.startswith(".write-test")
    ]
    assert not left
    for stage in folder.rglob("stages/*"):
        read_artifact(stage)


@pytest.fixture(autouse=True, scope="session")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


@pytest.fixture(scope="session")
def failing_recipe() -> Path:
    """A recipe whose gate cannot be passed: two steps of nothing, and no image may be wrong."""

    def make(folder: Path) -> Path:
        path = folder / "failing.toml"
        path.write_text(FAILING_RECIPE)
        return path

    return make_once("failing-recipe", make)


@dataclass(frozen=True)
class FailedRun:
    """Where a run with a failed gate lies, and what its command did."""

    out: Path
    command: tuple[str | Path, ...]
    outcome: Outcome


@pytest.fixture(scope="session")
def failed_run(failing_recipe: Path, image_folder: Path) -> FailedRun:

    def make(out: Path) -> FailedRun:
        command = ("run", failing_recipe, "--data", image_folder, "--out", out, "--workers", "0", "--device", "cpu")
        return FailedRun(out, command, call(*command))

    return make_once("failed-run", make)
