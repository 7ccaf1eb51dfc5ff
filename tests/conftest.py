"""Fixtures that several test files share: a small image folder, and one small run through every stage."""

from __future__ import annotations

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each process has a core, and threads beyond it would stand in the others' way. Read when torch and numpy are imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from convnext_deploy.api import open_inputs
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.cli import starting
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.evaluation import latency
from convnext_deploy.evaluation.timing import interleaved
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.runners import openvino
from convnext_deploy.system import load, progress_bars
from convnext_deploy.system.execution import Execution
from tests.evaluation.in_process import run_job_here
from tests.shared import make_once, share_with_all_workers
from tests.traces import shared_traces

# other work on a machine makes examples slow, which says nothing of the tests
settings.register_profile("shared machine", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("shared machine")

CLASSES = ("cat", "dog", "owl")
EXPORT = torch.onnx.export

SMALL_RECIPE = """
name = "small"
seed = 3
[[stages]]
kind = "train"
name = "teacher"
[stages.model]
name = "test_convnext3"
image_size = 32
[stages.fit]
epochs = 2
batch_size = 16
base_learning_rate = 0.256
warmup_epochs = 0
drop_path_rate = 0.1
[[stages]]
kind = "distill"
name = "student"
teacher = "teacher"
[stages.model]
name = "test_convnext2"
image_size = 32
[stages.fit]
epochs = 2
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
kind = "quantize"
source = "student"
target = "onnxruntime"
max_drop_pp = 100.0
calibration_images = 12
selection_images = 12
[[stages]]
kind = "onnx"
name = "onnx-fp32"
source = "student"
[[stages]]
kind = "onnx"
name = "onnx-int8"
source = "qat"
[[stages]]
kind = "tensorrt"
name = "engine"
gpus = ["sm86"]
"""


def draw_image(label: int, rng: np.random.Generator, side: int = 32) -> Image.Image:
    """Draw an image that a network can tell by its colour, with noise on it."""
    pixels = rng.integers(0, 90, (side, side, 3))
    pixels[..., label % 3] += 120
    return Image.fromarray(pixels.astype(np.uint8))


def write_image_folder(root: Path, classes: tuple[str, ...] = CLASSES, train: int = 12, validation: int = 6) -> Path:
    """Write `train/` and `val/` PNG files, `train` and `validation` of each class, all different."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", validation)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                draw_image(label, rng).save(folder / f"{index}.png")
    return root


@pytest.fixture
def monkeypatch(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """As pytest's own, but undone before pytest removes `tmp_path`, for which it may need what a test took away."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(autouse=True)
def _no_user_cache() -> Iterator[None]:
    """Tests look at every image, and leave nothing with the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_inputs, "user_cache", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line comes because the machine is busy with something else."""
    monkeypatch.setattr(starting, "PATIENCE_S", 60.0)
    monkeypatch.setattr(progress_bars, "FIRST_S", progress_bars._SILENT_S)


@pytest.fixture(scope="session")
def image_folder() -> Path:
    """An image folder of three classes; do not change it."""
    return make_once("images", write_image_folder)


@pytest.fixture(scope="session")
def small_data(image_folder: Path) -> Data:
    """The opened image folder."""
    return open_data(str(image_folder))


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe with every kind of stage."""
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(SMALL_RECIPE)
    return load_recipe(path)


@pytest.fixture(scope="session")
def small_run(small_recipe: Recipe, small_data: Data) -> RunResult:
    """The result of the small recipe; its folder is the parent of `stages` in any row's artifact path. Do not change it."""

    def make(folder: Path) -> RunResult:
        return run_recipe(small_recipe, Settings(folder, Execution()), data=small_data)

    return make_once("small-run", make)


@pytest.fixture(scope="session")
def small_artifacts(small_run: RunResult) -> dict[str, Artifact]:
    """The artifacts of the small run by stage name."""
    return {row.name: read_artifact(Path(row.identity.artifact)) for row in small_run.report.rows}


@pytest.fixture(scope="session")
def short_timing() -> Iterator[None]:
    """Time as few images as possible, from here to the end of the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_BUDGET_S", 0.0)
        yield


@pytest.fixture
def timed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time in this process, where it is not the times that count."""
    monkeypatch.setattr(interleaved, "run_job", run_job_here)


@pytest.fixture(scope="session", autouse=True)
def _free_machine() -> Iterator[None]:
    """Let the machine say that it does nothing else: what is printed must not depend on what runs beside the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_average", lambda: 0.0)
        patch.setattr(load, "_busy_s", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let tests press Ctrl-C: a shell that starts a command in the background makes it ignore that, and what it starts as well."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    share_with_all_workers(tmp_path_factory)
    with shared_traces():
        yield


@pytest.fixture
def traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have networks traced that another test had traced before."""
    monkeypatch.setattr(torch.onnx, "export", EXPORT)


@pytest.fixture(autouse=True)
def _unchanged_threads() -> Iterator[None]:
    """No test may change the number of threads for those after it."""
    count = torch.get_num_threads  # a test may still have another in its place
    before = count()
    yield
    assert count() == before


@pytest.fixture
def core() -> Any:
    """OpenVINO's core of this process."""
    if not openvino.is_installed():
        pytest.skip("openvino is not installed")
    return openvino.openvino_core()
