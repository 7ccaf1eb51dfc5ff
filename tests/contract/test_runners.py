"""What every runner promises, for one artifact of each format and precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.artifact import Artifact, Format
from convnext_deploy.data.loaders import EvaluationBatches
from convnext_deploy.data.sources import Data
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.runners import Runner, open_runner

ARTIFACTS = ("student", "ptq", "qat", "onnx-fp32", "onnx-int8", "engine")
"""Stages of the small run."""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.gpu) if name == "engine" else name for name in ARTIFACTS])
def artifact(request: pytest.FixtureRequest, small_artifacts: dict[str, Artifact]) -> Artifact:
    return small_artifacts[request.param]


@pytest.fixture
def runner(artifact: Artifact) -> Iterator[Runner]:
    try:
        opened = open_runner(artifact)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def images(small_data: Data, small_artifacts: dict[str, Artifact]) -> NDArray[np.float32]:
    """Validation images `(18, 3, 32, 32)`, normalized."""
    preprocess = small_artifacts["student"].preprocess
    ((batch, _),) = EvaluationBatches(small_data.validation, preprocess, len(small_data.validation))
    found: NDArray[np.float32] = batch.numpy()
    return found


def tolerance(artifact: Artifact) -> float:
    """How much the logits may differ between batch sizes, as a part of their range.

    Batches of another size are summed in another order. In INT8 that moves a value that lies on a rounding boundary by a step
    of its grid.
    """
    return 1e-4 if artifact.precision == "fp32" else 0.03


def test_every_format_has_a_runner_under_contract(small_artifacts: dict[str, Artifact]) -> None:
    # a Torch-TensorRT program is made on a GPU alone; tests/runners/test_torch_tensorrt.py has one of a stand-in
    assert {small_artifacts[name].format for name in ARTIFACTS} == set(get_args(Format)) - {"torch-tensorrt"}


@pytest.mark.parametrize("count", [1, 5])
def test_logits_have_a_float32_row_per_image(
    runner: Runner, artifact: Artifact, images: NDArray[np.float32], count: int
) -> None:
    logits = runner.logits(images[:count])
    assert type(logits) is np.ndarray
    assert logits.shape == (count, artifact.model.num_classes)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_logits_of_an_image_do_not_depend_on_the_batch(
    runner: Runner, artifact: Artifact, images: NDArray[np.float32]
) -> None:
    together = runner.logits(images[:5])
    alone = np.concatenate([runner.logits(images[i : i + 1]) for i in range(5)])
    assert np.abs(together - alone).max() <= tolerance(artifact) * np.abs(together).max()


def test_logits_of_an_image_do_not_depend_on_its_place(
    runner: Runner, artifact: Artifact, images: NDArray[np.float32]
) -> None:
    order = np.random.default_rng(0).permutation(len(images))
    moved = runner.logits(np.ascontiguousarray(images[order]))
    kept = runner.logits(images)[order]
    assert np.abs(moved - kept).max() <= tolerance(artifact) * np.abs(kept).max()


def test_logits_differ_between_images(runner: Runner, images: NDArray[np.float32]) -> None:
    logits = runner.logits(images)
    assert len(np.unique(logits.round(3), axis=0)) > len(images) // 2


def test_logits_are_the_same_again(runner: Runner, images: NDArray[np.float32]) -> None:
    first = runner.logits(images).copy()
    runner.logits(images[:3])
    assert np.array_equal(runner.logits(images), first)


def test_logits_stay_when_the_runner_is_called_again(runner: Runner, images: NDArray[np.float32]) -> None:
    first = runner.logits(images[:2])
    before = first.copy()
    runner.logits(images[2:4])
    assert np.array_equal(first, before)


def test_logits_leave_the_images_alone(runner: Runner, images: NDArray[np.float32]) -> None:
    given = images.copy()
    runner.logits(given)
    assert np.array_equal(given, images)


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed"])
def test_logits_accept_images_of_any_memory_layout(
    runner: Runner, artifact: Artifact, images: NDArray[np.float32], layout: str
) -> None:
    views = {
        "transposed": np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "strided": images[::2],
        "reversed": images[::-1],
    }
    view = views[layout]
    expected = runner.logits(np.ascontiguousarray(view))
    assert np.abs(runner.logits(view) - expected).max() <= tolerance(artifact) * np.abs(expected).max()


def test_runner_tells_its_backend_and_device(runner: Runner, artifact: Artifact) -> None:
    expected = {"torch": ("torch", "cpu"), "onnx": ("onnxruntime", "cpu"), "tensorrt": ("tensorrt", "cuda")}
    assert (runner.name, runner.device) == expected[artifact.format]


def test_close_lets_the_artifact_be_opened_again(artifact: Artifact, images: NDArray[np.float32]) -> None:
    answers = []
    for _ in range(2):
        try:
            runner = open_runner(artifact)
        except BackendUnavailableError as error:
            pytest.skip(str(error))
        answers.append(runner.logits(images[:4]))
        runner.close()
    assert np.array_equal(answers[0], answers[1])


def test_two_runners_of_an_artifact_do_not_disturb_each_other(artifact: Artifact, images: NDArray[np.float32]) -> None:
    try:
        one, other = open_runner(artifact), open_runner(artifact)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    expected = one.logits(images[:4])
    one.close()
    assert np.array_equal(other.logits(images[:4]), expected)
    other.close()
