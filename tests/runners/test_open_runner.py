"""Opening artifacts: which runner they get, and one line for those that cannot be opened."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, CheckpointError, DeployError
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.runners import open_runner
from convnext_deploy.system.cuda_driver import cuda_driver_error
from convnext_deploy.system.execution import Execution


@pytest.fixture(scope="module")
def images(small_data: Data, small_artifacts: dict[str, Artifact]) -> NDArray[np.float32]:
    """The validation images of the small run."""
    preprocess = small_artifacts["student"].preprocess
    ((batch, _),) = EvaluationBatches(small_data.validation, preprocess, len(small_data.validation))
    found: NDArray[np.float32] = batch.numpy()
    return found


@pytest.mark.parametrize(("name", "runner"), [("student", "torch"), ("ptq", "torch"), ("onnx-int8", "onnxruntime")])
def test_open_runner_chooses_by_format(small_artifacts: dict[str, Artifact], name: str, runner: str) -> None:
    opened = open_runner(small_artifacts[name])
    assert (opened.name, opened.device) == (runner, "cpu")
    opened.close()


@pytest.mark.parametrize(
    ("source", "exported", "tolerance"), [("student", "onnx-fp32", 1e-4), ("qat", "onnx-int8", 0.05)]
)
def test_runners_of_pytorch_and_onnx_agree(
    small_artifacts: dict[str, Artifact], images: NDArray[np.float32], source: str, exported: str, tolerance: float
) -> None:
    expected, found = (open_runner(small_artifacts[name]).logits(images) for name in (source, exported))
    assert np.abs(found - expected).max() <= tolerance * np.ptp(expected)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _overwrite(path: Path) -> None:
    path.write_bytes(b"no network, just words\n")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _overwrite, _empty, Path.unlink])
@pytest.mark.parametrize("name", ["student", "qat", "onnx-fp32", "onnx-int8"])
def test_open_runner_raises_one_line_when_the_file_is_damaged(
    small_artifacts: dict[str, Artifact], name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(small_artifacts[name].path, folder)
    artifact = dataclasses.replace(small_artifacts[name], path=folder)
    damage(artifact.main_file)
    with pytest.raises(DeployError, match=rf"^[^\n]*{re.escape(str(artifact.main_file))}[^\n]*$"):
        open_runner(artifact)


def test_open_runner_raises_when_the_weights_are_those_of_another_network(small_artifacts: dict[str, Artifact]) -> None:
    teacher = small_artifacts["teacher"]
    wrong = dataclasses.replace(teacher, model=small_artifacts["student"].model)
    with pytest.raises(CheckpointError, match=r"^[^\n]*shape[^\n]*$"):
        open_runner(wrong)


def test_open_runner_raises_when_a_float_checkpoint_is_said_to_be_quantized(
    small_artifacts: dict[str, Artifact],
) -> None:
    wrong = dataclasses.replace(small_artifacts["student"], details=TorchDetails("tensorrt"))
    with pytest.raises(CheckpointError, match=r"^[^\n]*lacks[^\n]*quantizer[^\n]*$"):
        open_runner(wrong)


def test_open_runner_prints_the_install_line_when_onnxruntime_is_missing(
    small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r"^[^\n]*pip install onnxruntime[^\n]*$"):
        open_runner(small_artifacts["onnx-fp32"])


@pytest.mark.skipif(cuda_driver_error() is not None, reason="no GPU runs the engine")
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_engine_agrees_with_onnx_runtime(
    small_artifacts: dict[str, Artifact], images: NDArray[np.float32], precision: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    trt = pytest.importorskip("tensorrt_rtx")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA support")
    major, minor = torch.cuda.get_device_capability()
    gpu = f"sm{major}{minor}"
    if gpu.upper() not in trt.ComputeCapability.__members__:
        pytest.skip(f"TensorRT-RTX has no target {gpu}")
    source = small_artifacts[f"onnx-{precision}"]
    config = TensorRTConfig(gpus=(gpu,), max_batch_size=4)
    recipe = Recipe("gpu", (StageEntry("engine", config, "source"),), source="given")
    run_recipe(recipe, Settings(tmp_path, Execution()), source=source)
    engine = read_artifact(tmp_path / "stages" / "engine")
    expected, found = (open_runner(artifact).logits(images) for artifact in (source, engine))
    # The GPU computes float products in TF32, with 10 bits of mantissa.
    assert np.abs(found - expected).max() <= 0.05 * np.ptp(expected)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9


def test_open_runner_says_what_an_engine_was_built_for_when_there_is_no_gpu(
    small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext_deploy.runners.tensorrt.cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86; not run: no GPU$"):
        open_runner(small_artifacts["engine"])


def test_open_runner_raises_when_the_main_file_is_a_folder(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    for name in ("student", "onnx-fp32"):
        artifact = dataclasses.replace(small_artifacts[name], path=tmp_path / name)
        artifact.main_file.mkdir(parents=True)
        with pytest.raises((ArtifactError, CheckpointError), match=r"^[^\n]+$"):
            open_runner(artifact)
