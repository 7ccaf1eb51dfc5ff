"""`bench`: which artifacts are timed with which runners and batch sizes, what the result says, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy import bench
from convnext_deploy.api.bench import Benchmark
from convnext_deploy.api.options import ExecutionOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, ProcessFailedError, RecipeError, RunnerError
from tests.evaluation.graphs import write_classifier
from tests.exporters.recorded_progress import RecordingProgress
from tests.pipeline.foreign_graphs import LOGITS, write_graph

CPU = ExecutionOptions(device="cpu")
pytestmark = pytest.mark.usefixtures("timed_here")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("small") / "model.onnx").main_file


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("large") / "large.onnx", 1024, 10).main_file


@pytest.fixture(scope="module")
def large_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("int8") / "int8.onnx", 1024, 10, int8=True).main_file


def quick(artifacts: Sequence[Path | str], **settings: Any) -> Benchmark:
    return bench(artifacts, **{"rounds": 1, "seconds": 0.02, "threads": 1, "execution": CPU, **settings})


def test_every_artifact_is_timed_with_each_runner_and_batch_size(small: Path, large: Path) -> None:
    pytest.importorskip("openvino")
    progress = RecordingProgress()
    execution = ExecutionOptions(device="cpu", progress=progress)
    found = quick([small, large], runners=["onnxruntime", "openvino"], batch_sizes=[1, 8, 1], execution=execution)
    assert [(t.candidate.name, t.runner, t.candidate.batch_size, len(t.processes)) for t in found.timings] == [
        (name, runner, size, 1)
        for size in (1, 8)
        for name in ("model.onnx", "large.onnx")
        for runner in ("onnxruntime", "openvino")
    ]
    assert {t.ratio.to for t in found.timings if t.ratio} == {"model.onnx on onnxruntime"}
    assert found.wall_s > 0
    (record, *_), large_record = json.loads(found.to_json())["timings"], json.loads(found.to_json())["timings"][2]
    assert (record["path"], record["runner"], record["precision"]) == (str(small), "onnxruntime", "fp32")
    assert record["p50_ms"] == record["processes"][0]["p50_ms"] < large_record["p50_ms"]
    assert large_record["ratio"]["low"] <= large_record["ratio"]["median"] <= large_record["ratio"]["high"]
    environment = json.loads(found.to_json())["environment"]
    assert environment["versions"]["onnxruntime"]


def test_int8_that_is_not_faster_is_said_of_each_batch_size(small: Path, large_int8: Path, large: Path) -> None:
    found = quick([small, large_int8], batch_sizes=[1, 2])
    assert [note.split(":")[0] for note in found.notes] == [
        f"int8.onnx on onnxruntime is INT8 and not faster than model.onnx on onnxruntime (fp32) at batch {size}"
        for size in (1, 2)
    ]
    assert quick([large_int8]).notes == ()
    assert quick([small, large]).notes == ()


def test_int8_that_is_faster_is_not_remarked_upon(large: Path, tmp_path: Path) -> None:
    fast = write_classifier(tmp_path / "fast.onnx", int8=True).main_file
    assert quick([large, fast]).notes == ()


def test_images_of_different_sizes_are_said(small: Path, tmp_path: Path) -> None:
    other = write_graph(tmp_path / "other.onnx", LOGITS)
    assert quick([small, other]).notes[0] == (
        "the images have different sizes, and the times tell that too, in pixels: model.onnx 4, other.onnx 16 (--image-size "
        "sets one for all)"
    )


def test_same_file_twice_has_two_names_and_a_file_of_the_same_name_its_path(small: Path, tmp_path: Path) -> None:
    other = write_classifier(tmp_path / "model.onnx").main_file
    assert [t.candidate.name for t in quick([small, small]).timings] == ["model.onnx", "model.onnx (2)"]
    assert [t.candidate.name for t in quick([small, other]).timings] == [str(small), str(other)]


@pytest.mark.heavy
def test_pytorch_artifact_of_int8_is_said_to_be_a_simulation(small_artifacts: dict[str, Artifact]) -> None:
    found = quick([small_artifacts["student"].path, small_artifacts["ptq"].path])
    assert [timing.runner for timing in found.timings] == ["torch", "torch"]
    (note,) = found.notes
    assert note.endswith("PyTorch only simulates INT8: export it to ONNX or an engine")


def test_engine_without_a_gpu_is_not_run_and_the_others_are(small_artifacts: dict[str, Artifact], small: Path) -> None:
    engine = small_artifacts["engine"].path
    found = quick([engine, small])
    if found.timings[0].processes:
        pytest.skip("this GPU runs the engine")
    assert not found.timings[0].failed
    assert (found.timings[0].not_run or "").startswith("built for SM86; not run: ")
    assert found.timings[1].ratio is not None
    with pytest.raises(
        BackendUnavailableError, match=r"^nothing was timed: engine on tensorrt: built for SM86; not run: "
    ):
        quick([engine])


def test_graph_of_a_frozen_batch_says_what_becomes_of_others(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    import onnx

    proto = onnx.load(write_classifier(tmp_path / "dynamic.onnx").main_file)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "frozen.onnx")
    found = quick([tmp_path / "frozen.onnx"], batch_sizes=[1, 2, 4])
    label = "frozen.onnx on onnxruntime has a frozen batch of 2"
    assert found.notes == (
        f"{label}, so that a batch of 1 is filled up",
        f"{label}, so that a batch of 4 is run in parts",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": [0]}, "batch_size = 0 is out of range; expected >= 1."),
        ({"batch_sizes": []}, "no batch size was given; expected at least one, such as 1."),
        ({"threads": 0}, "threads = 0 is out of range; expected >= 1."),
        ({"rounds": 0}, "rounds = 0 is out of range; expected >= 1."),
        ({"seconds": 0.0}, "seconds = 0.0 is out of range; expected > 0."),
        ({"seconds": math.nan}, "seconds = nan is out of range; expected > 0."),
    ],
)
def test_numbers_out_of_range_are_refused(small: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        quick([small], **settings)
    assert str(raised.value) == message


def test_artifacts_and_runners_that_do_not_belong_together_are_refused(
    small: Path, small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    student = small_artifacts["student"].path
    cases = [
        ([small], ["onnxruntme"], r"^there is no runner 'onnxruntme'; [^\n]* Did you mean 'onnxruntime'\?$"),
        ([small, student], ["torch"], r"model\.onnx is in the format onnx, which torch cannot open; name one of onnx"),
        (
            [small],
            ["onnxruntime", "torch"],
            r"^the runner torch opens artifacts in the format torch, and none was given",
        ),
    ]
    for artifacts, runners, message in cases:
        with pytest.raises(RunnerError, match=message):
            quick(artifacts, runners=runners)
    with pytest.raises(RecipeError, match="no artifact was given"):
        quick([])
    with pytest.raises(ArtifactError, match="none does not exist"):
        quick([small, tmp_path / "none"])


def test_nothing_that_can_be_timed_is_an_error(tmp_path: Path) -> None:
    import onnx

    artifact = write_classifier(tmp_path / "broken.onnx")
    proto = onnx.load(artifact.main_file)
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, artifact.main_file)
    with pytest.raises(ProcessFailedError, match=r"^nothing was timed: broken\.onnx on onnxruntime: [^\n]+$"):
        quick([artifact.main_file])
