"""A light recipe, run once, and copies of its folder that a test may change."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.system.execution import Execution
from tests.shared import make_once

# Two branches from one network: ptq -> qat, and minmax -> onnx.
LIGHT_RECIPE = """
name = "light"
seed = 3
[[stages]]
kind = "train"
name = "model"
[stages.model]
name = "test_convnext2"
image_size = 32
[stages.fit]
epochs = 1
batch_size = 16
base_learning_rate = 0.256
warmup_epochs = 0
[[stages]]
kind = "ptq"
calibration_images = 12
[[stages]]
kind = "qat"
[stages.fit]
epochs = 1
batch_size = 16
base_learning_rate = 0.0256
[[stages]]
kind = "ptq"
name = "minmax"
source = "model"
calibration_method = "minmax"
calibration_images = 12
[[stages]]
kind = "onnx"
"""
STAGES = ("model", "ptq", "qat", "minmax", "onnx")


def settings_for(out: Path) -> Settings:
    return Settings(out, Execution())


def change_stage(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """Return the recipe with other settings for one stage; `fit` and `gate` are given as they should be."""
    stages = []
    for stage in recipe.stages:
        if stage.name == name:
            gate = changes.pop("gate", stage.gate)
            stage = dataclasses.replace(stage, config=dataclasses.replace(stage.config, **changes), gate=gate)
        stages.append(stage)
    return dataclasses.replace(recipe, stages=tuple(stages))


def hashes(result: RunResult) -> dict[str, str]:
    """Return the hash of every artifact of a run by stage name."""
    from convnext_deploy.artifacts.artifact import read_artifact

    return {row.name: read_artifact(Path(row.identity.artifact)).sha256 for row in result.report.rows}


@pytest.fixture(autouse=True, scope="session")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


@pytest.fixture(scope="session")
def light_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "light.toml"
    path.write_text(LIGHT_RECIPE)
    return path


@pytest.fixture(scope="session")
def light_recipe(light_file: Path) -> Recipe:
    return load_recipe(light_file)


@pytest.fixture(scope="session")
def light_run(light_recipe: Recipe, small_data: Data) -> RunResult:
    """The light recipe's result; do not change its folder, take `copy_run`."""

    def make(folder: Path) -> RunResult:
        return run_recipe(light_recipe, settings_for(folder), data=small_data)

    return make_once("light-run", make)


@pytest.fixture
def copied(light_run: RunResult, tmp_path: Path) -> Path:
    """A copy of the light run's folder."""
    shutil.copytree(Path(light_run.report.rows[0].identity.artifact).parents[1], tmp_path / "out")
    return tmp_path / "out"


Rerun = Callable[..., RunResult]


@pytest.fixture
def rerun(copied: Path, light_recipe: Recipe, small_data: Data) -> Rerun:
    """Run a recipe (the light one unless given) in the copy, on the same data unless given; `restart`: replace what differs."""

    def run(recipe: Recipe = light_recipe, data: Data = small_data, *, restart: bool = False) -> RunResult:
        return run_recipe(recipe, dataclasses.replace(settings_for(copied), restart=restart), data=data)

    return run


@pytest.fixture
def hold_lock() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Let another process work in a folder until the test kills it."""
    code = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
    started: list[subprocess.Popen[str]] = []

    def hold(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(out / ".lock")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()
