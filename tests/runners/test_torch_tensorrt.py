"""The Torch-TensorRT runner over a stand-in: any number of images, and one line for what cannot be opened or run here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact, describe_file, read_artifact
from convnext_deploy.artifacts.details import Profile, TorchTensorRTDetails
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.config.engine import TorchTensorRTConfig
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.errors import ArtifactError, BackendUnavailableError
from convnext_deploy.exporters.tensorrt import torch_tensorrt
from convnext_deploy.exporters.tensorrt.torch_tensorrt import compile_program, save_program
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.runners import open_runner
from convnext_deploy.system.cuda_driver import cuda_driver_error
from convnext_deploy.system.execution import Execution
from tests.exporters.torch_tensorrt_stand_in import Script, install_stand_in
from tests.shared import heavy_except
from tests.weights import write_weights

# torch 2.10 says it once of the bytes that it reads itself
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")

CLASSES, SIDE, MAX_BATCH = 3, 32, 4


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt((1, 1, 1, 1), (8, 8, 8, 8), num_classes=CLASSES).eval()


@pytest.fixture(scope="module")
def program(network: ConvNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved program; do not change it."""
    path = tmp_path_factory.mktemp("program") / "model.ep"
    profile, image = Profile(1, 1, MAX_BATCH), (3, SIDE, SIDE)
    with pytest.MonkeyPatch.context() as patch:
        install_stand_in(patch, Script())
        compiled = compile_program(
            network, precision="fp32", profile=profile, image=image, workspace_mib=1, optimization_level=0
        )
        save_program(compiled, path, profile=profile, image=image)
    return path


@pytest.fixture
def artifact(program: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """The program as an artifact, on a machine with the stand-in."""
    install_stand_in(monkeypatch, Script())
    return Artifact(
        program.parent,
        TorchTensorRTDetails("2.14.0", "SM86", MAX_BATCH),
        "fp32",
        ModelSpec("convnext_atto", CLASSES),
        None,
        default_preprocess(SIDE),
        (describe_file(program),),
    )


def some_images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def expected_logits(network: ConvNeXt, images: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = network(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    return logits


@pytest.mark.gpu
@pytest.mark.skipif(cuda_driver_error() is not None, reason="no GPU compiles the program")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_program_of_the_real_package_computes_the_network(tmp_path: Path, precision: str) -> None:
    try:
        release = torch_tensorrt.import_torch_tensorrt().__version__
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    source = open_input(
        write_weights(tmp_path / "weights.safetensors", ModelSpec("convnext_atto", CLASSES)),
        asked=PreprocessSettings(image_size=SIDE),
    )
    config = TorchTensorRTConfig("fp16" if precision == "fp16" else "fp32", max_batch_size=MAX_BATCH)
    recipe = Recipe("gpu", (StageEntry("program", config, "source"),), source="given")
    run_recipe(recipe, Settings(tmp_path, Execution()), source=source)
    program = read_artifact(tmp_path / "stages" / "program")
    assert program.details_as(TorchTensorRTDetails).torch_tensorrt == release
    images = some_images(9)
    expected, found = (open_runner(artifact).logits(images) for artifact in (source, program))
    # The GPU computes float32 products in TF32, which has as many bits as float16.
    assert np.abs(found - expected).max() <= 0.05 * np.ptp(expected)


@pytest.mark.heavy
@pytest.mark.parametrize("count", heavy_except((5,), (1, MAX_BATCH, 5, 9)))
def test_logits_are_right_for_any_number_of_images(artifact: Artifact, network: ConvNeXt, count: int) -> None:
    runner = open_runner(artifact)
    assert (runner.name, runner.device) == ("torch-tensorrt", "cuda")
    images = some_images(count)
    logits = runner.logits(images)
    assert logits.shape == (count, CLASSES)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected_logits(network, images), rtol=1e-4, atol=1e-5)
    runner.close()


@pytest.mark.parametrize("view", ["transposed", "reversed"])
def test_logits_accept_images_that_are_not_contiguous(artifact: Artifact, network: ConvNeXt, view: str) -> None:
    images = some_images(3).transpose(0, 1, 3, 2) if view == "transposed" else some_images(3)[::-1]
    found = open_runner(artifact).logits(images)
    np.testing.assert_allclose(found, expected_logits(network, images), rtol=1e-4, atol=1e-5)


def test_logits_raise_one_line_when_the_images_have_another_size(artifact: Artifact) -> None:
    runner = open_runner(artifact)
    with pytest.raises(ArtifactError, match=r"^the program does not take images of shape \(1, 3, 16, 16\): [^\n]+$"):
        runner.logits(np.zeros((1, 3, 16, 16), np.float32))


def test_close_leaves_another_runner_of_the_artifact_alone(artifact: Artifact) -> None:
    one, other = open_runner(artifact), open_runner(artifact)
    expected = one.logits(some_images(2))
    one.close()
    assert np.array_equal(other.logits(some_images(2)), expected)


def test_open_runner_says_that_there_is_no_gpu(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_tensorrt, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86; not run: no GPU$"):
        open_runner(artifact)


def test_open_runner_says_that_pytorch_has_no_cuda(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86; not run: this PyTorch has no CUDA support$"):
        open_runner(artifact)


def test_open_runner_says_which_gpu_is_here_when_the_program_is_for_another(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    with pytest.raises(BackendUnavailableError, match=r"^built for SM86; not run: this GPU is SM120$"):
        open_runner(artifact)


@pytest.mark.parametrize("content", [b"", b"no program, just words\n", None])
def test_open_runner_raises_one_line_when_the_file_is_damaged(
    artifact: Artifact, program: Path, tmp_path: Path, content: bytes | None
) -> None:
    whole = program.read_bytes()
    (tmp_path / "model.ep").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ArtifactError, match=r"^[^\n]*model\.ep is not a program[^\n]+$"):
        open_runner(dataclasses.replace(artifact, path=tmp_path))
