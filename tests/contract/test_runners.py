"""What every runner promises, for one artifact of each format and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import Format
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.runners import RUNNERS, Runner, open_runner
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.onnx import run as run_onnx
from convnext_deploy.system.execution import Execution

Case = tuple[str, str, int | None]
"""An artifact (a stage of the small run, or one of `GRAPHS`), the runner that opens it, and its threads."""

GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixels": ("student", {"input_type": "uint8", "input_layout": "nhwc", "output": "top-k", "top_k": 3}),
    "frozen": ("qat", {"batch_size": 3, "output": "probabilities"}),
    "fp16": ("student", {"precision": "fp16"}),
    "int8-fp16": ("qat", {"precision": "fp16", "input_layout": "nhwc"}),
}
"""ONNX files beyond those of the small run: name → the stage they come from and the settings of their export."""

CASES: tuple[Case, ...] = (
    *((name, "torch", None) for name in ("student", "ptq", "qat")),
    ("student", "torch", 1),
    ("student", "torch-compile", 1),
    *((name, "onnxruntime", None) for name in ("onnx-fp32", "onnx-int8", *GRAPHS)),
    ("onnx-int8", "onnxruntime", 1),
    *((name, "openvino", None) for name in ("onnx-fp32", "onnx-int8", *GRAPHS)),
    ("onnx-int8", "openvino", 1),
    ("onnx-int8", "openvino-fp32", 1),
    ("onnx-fp32", "openvino-bf16", 1),
    *(("onnx-fp32", f"onnxruntime-{kind}", 1) for kind in ("openvino", "cuda", "tensorrt")),
    ("engine", "tensorrt", None),
)
_MARKS = {"tensorrt": pytest.mark.gpu, "torch-compile": pytest.mark.slow}
_SLOW = (("pixels", "openvino"), ("fp16", "openvino"), ("onnx-int8", "openvino-fp32"))
_HEAVY = (
    ("ptq", "torch", None),
    ("onnx-int8", "onnxruntime", 1),
    ("onnx-int8", "openvino", 1),
    *((name, runner, None) for name in ("int8-fp16", "frozen") for runner in ("onnxruntime", "openvino")),
)


@pytest.fixture(scope="module")
def artifacts(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """All artifacts that the cases name."""
    folder = tmp_path_factory.mktemp("graphs")
    found = dict(small_artifacts)
    for name, (source, settings) in GRAPHS.items():
        (folder / name).mkdir()
        context = StageContext(name, folder / name, small_data, Execution(), folder / "cache")
        found[name] = run_onnx(ONNXConfig(**settings, range_images=12), small_artifacts[source], context)
    return found


def _parameter(case: Case) -> Any:
    name, runner, threads = case
    marks = [_MARKS[runner]] if runner in _MARKS else [pytest.mark.slow] if (name, runner) in _SLOW else []
    if case in _HEAVY:
        marks = [pytest.mark.heavy]
    return pytest.param(case, marks=marks, id=f"{name}-{runner}" + (f"-{threads}" if threads else ""))


@pytest.fixture(scope="module", params=[_parameter(case) for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def artifact(case: Case, artifacts: dict[str, Artifact]) -> Artifact:
    return artifacts[case[0]]


Open = Callable[[], Runner]


@pytest.fixture(scope="module")
def opened(case: Case, artifact: Artifact) -> Open:
    """Opens the case, or skips the test where its backend is not here."""

    def open_it() -> Runner:
        try:
            return open_runner(artifact, runner=case[1], threads=case[2])
        except BackendUnavailableError as error:
            pytest.skip(str(error))

    return open_it


@pytest.fixture(scope="module")
def runner(opened: Open) -> Iterator[Runner]:
    """The case, opened once for all tests of it."""
    found = opened()
    yield found
    found.close()


@pytest.fixture(scope="module")
def images(small_data: Data, small_artifacts: dict[str, Artifact]) -> NDArray[np.float32]:
    """Validation images `(18, 3, 32, 32)`, normalized."""
    preprocess = small_artifacts["student"].preprocess
    ((batch, _),) = EvaluationBatches(small_data.validation, preprocess, len(small_data.validation))
    found: NDArray[np.float32] = batch.numpy()
    return found


@pytest.fixture(scope="module")
def pixels(small_data: Data, small_artifacts: dict[str, Artifact]) -> NDArray[np.uint8]:
    """The same images `(18, 32, 32, 3)`, as they come from the data."""
    preprocess = small_artifacts["student"].preprocess
    ((batch, _),) = EvaluationBatches(small_data.validation, preprocess, len(small_data.validation), as_pixels=True)
    found: NDArray[np.uint8] = batch.numpy()
    return found


def tolerance(case: Case, artifact: Artifact) -> float:
    """How much the logits may differ between batch sizes, as a part of their range.

    Batches of another size are summed in another order. In INT8 that moves a value that lies on a rounding boundary by a step
    of its grid; in FP16 and bf16 the sums themselves are rounded.
    """
    return 1e-4 if artifact.precision == "fp32" and case[1] != "openvino-bf16" else 0.03


def test_every_runner_and_every_format_is_under_contract(artifacts: dict[str, Artifact]) -> None:
    # a Torch-TensorRT program is made on a GPU alone; tests/runners/test_torch_tensorrt.py has one of a stand-in
    assert {runner for _, runner, _ in CASES} == set(RUNNERS) - {"torch-tensorrt"}
    # those that only teach are in tests/stages/test_foreign_teachers.py
    teaching = {"foreign", "predictions"}
    assert {artifacts[name].format for name, _, _ in CASES} == set(get_args(Format)) - {"torch-tensorrt"} - teaching


def test_pixels_are_prepared_as_the_artifact_takes_them(
    runner: Runner, case: Case, artifact: Artifact, images: NDArray[np.float32], pixels: NDArray[np.uint8]
) -> None:
    assert pixels.dtype == np.uint8
    expected = runner.logits(images[:5])
    difference = np.abs(runner.logits(pixels[:5]) - expected).max()
    assert difference <= tolerance(case, artifact) * np.abs(expected).max()
    prepared = runner.prepare(pixels[:5])
    if case[0] == "pixels":  # nothing is left to do to them
        assert prepared.dtype == np.uint8
        assert np.array_equal(prepared, pixels[:5])
    before = prepared.copy()
    outputs = runner.run(prepared)  # what is timed begins with what the artifact takes, and ends with what it gives
    assert all(len(values) == 5 for values in outputs.values())
    assert np.array_equal(prepared, before)


@pytest.mark.parametrize("count", [1, 5])
def test_logits_have_a_float32_row_per_image(
    runner: Runner, case: Case, artifact: Artifact, images: NDArray[np.float32], count: int
) -> None:
    logits = runner.logits(images[:count])
    assert type(logits) is np.ndarray
    assert logits.shape == (count, artifact.model.num_classes)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_logits_of_an_image_do_not_depend_on_the_batch(
    runner: Runner, case: Case, artifact: Artifact, images: NDArray[np.float32]
) -> None:
    together = runner.logits(images[:5])
    alone = np.concatenate([runner.logits(images[i : i + 1]) for i in range(5)])
    assert np.abs(together - alone).max() <= tolerance(case, artifact) * np.abs(together).max()


def test_logits_of_an_image_do_not_depend_on_its_place(
    runner: Runner, case: Case, artifact: Artifact, images: NDArray[np.float32]
) -> None:
    order = np.random.default_rng(0).permutation(len(images))
    moved = runner.logits(np.ascontiguousarray(images[order]))
    kept = runner.logits(images)[order]
    assert np.abs(moved - kept).max() <= tolerance(case, artifact) * np.abs(kept).max()


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
    runner: Runner, case: Case, artifact: Artifact, images: NDArray[np.float32], layout: str
) -> None:
    views = {
        "transposed": np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "strided": images[::2],
        "reversed": images[::-1],
    }
    view = views[layout]
    expected = runner.logits(np.ascontiguousarray(view))
    assert np.abs(runner.logits(view) - expected).max() <= tolerance(case, artifact) * np.abs(expected).max()


def test_runner_tells_its_backend_and_device(runner: Runner, case: Case) -> None:
    on_gpu = {"tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"}
    assert (runner.name, runner.device) == (case[1], "cuda" if case[1] in on_gpu else "cpu")


def test_close_lets_the_artifact_be_opened_again(opened: Open, images: NDArray[np.float32]) -> None:
    answers = []
    for _ in range(2):
        runner = opened()
        answers.append(runner.logits(images[:4]))
        runner.close()
    assert np.array_equal(answers[0], answers[1])


def test_two_runners_of_an_artifact_do_not_disturb_each_other(opened: Open, images: NDArray[np.float32]) -> None:
    one, other = opened(), opened()
    expected = one.logits(images[:4])
    one.close()
    assert np.array_equal(other.logits(images[:4]), expected)
    other.close()


def test_threads_of_a_runner_leave_those_of_the_process_alone(runner: Runner, images: NDArray[np.float32]) -> None:
    before = torch.get_num_threads()
    runner.logits(images[:2])
    assert torch.get_num_threads() == before
