"""What INT8 is compared with: the fastest float graph for its own runtime, made by the recipe's own stages where they do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact, StageRecord
from convnext_deploy.artifacts.details import EngineDetails, ONNXDetails, Profile
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.pipeline import float_baseline
from convnext_deploy.pipeline.float_baseline import FloatBaseline, find_float_baseline, is_judged


def record(config: StageConfig) -> StageRecord:
    return StageRecord(config.kind, config.kind, dataclasses.asdict(config), {}, {}, "none", "none", 0, {}, 0.0, "key")


def int8_graph(artifact: Artifact, target: Any, config: ONNXConfig = ONNXConfig()) -> Artifact:  # noqa: B008  (frozen)
    return dataclasses.replace(artifact, precision="int8", details=ONNXDetails(target), lineage=(record(config),))


def int8_engine(artifact: Artifact, config: TensorRTConfig, **changes: Any) -> Artifact:
    lineage = (record(ONNXConfig(input_type="uint8", license="MIT")), record(config))
    details = EngineDetails(
        **{"flavor": config.flavor, "tensorrt": "10.3", "gpus": (), "batch": Profile(1, 1, 8), **changes}
    )
    return dataclasses.replace(artifact, precision="int8-fp16", details=details, lineage=lineage)


@pytest.fixture
def student(small_artifacts: dict[str, Artifact]) -> Artifact:
    return small_artifacts["student"]


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_baseline, "cuda_driver_error", lambda: None)
    monkeypatch.setattr(float_baseline, "gpu_name", lambda: "SM86")


def test_graphs_and_engines_of_int8_are_judged_and_nothing_else(small_artifacts: dict[str, Artifact]) -> None:
    assert {name for name, artifact in small_artifacts.items() if is_judged(artifact)} == {"onnx-int8", "engine"}


def test_graph_for_onnxruntime_is_compared_with_the_float_graph_of_the_same_ends(student: Artifact) -> None:
    ends = ONNXConfig(input_type="uint8", output="top-k", top_k=2, batch_size=4, license="MIT")
    found = find_float_baseline(int8_graph(student, "onnxruntime", ends), "student", (), ())
    expected = dataclasses.replace(ends, runtime="onnxruntime")
    stage = StageEntry("student-float-onnxruntime", expected, "student")
    assert found == FloatBaseline((stage,), "onnxruntime", "onnxruntime", "cpu", (4,))


@pytest.mark.parametrize("bf16", [True, False])
def test_graph_for_openvino_is_compared_with_the_fastest_float_that_this_cpu_has(
    student: Artifact, monkeypatch: pytest.MonkeyPatch, *, bf16: bool
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("convnext_deploy.runners.openvino.computes_bf16", lambda: bf16)
    found = find_float_baseline(int8_graph(student, "openvino"), "source", (), ())
    assert isinstance(found, FloatBaseline)
    assert (found.runner, found.float_runner) == ("openvino", "openvino-bf16" if bf16 else "openvino-fp32")
    assert found.stages[0].name == "float-openvino"


def test_stage_that_makes_the_float_form_already_is_taken_and_names_are_not_taken_twice(student: Artifact) -> None:
    graph = int8_graph(student, "onnxruntime")
    theirs = StageEntry("theirs", ONNXConfig(runtime="onnxruntime", license="MIT", range_images=3), "student")
    found = find_float_baseline(graph, "student", (theirs,), ("theirs",))
    assert isinstance(found, FloatBaseline)
    assert found.stages == (theirs,)
    others = (
        dataclasses.replace(theirs, source="teacher"),
        dataclasses.replace(theirs, config=ONNXConfig()),
        dataclasses.replace(theirs, config=ONNXConfig(runtime="onnxruntime", input_type="uint8")),
    )
    found = find_float_baseline(graph, "student", others, ("student-float-onnxruntime",))
    assert isinstance(found, FloatBaseline)
    assert found.stages[0].name == "student-float-onnxruntime-2"


def test_graph_for_tensorrt_is_never_judged_by_a_cpu(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_baseline, "cuda_driver_error", lambda: "no GPU")
    for target in ("tensorrt", "tensorrt-depthwise"):
        assert find_float_baseline(int8_graph(student, target), "student", (), ()) == "no GPU"
    monkeypatch.setattr(float_baseline, "cuda_driver_error", lambda: None)
    assert "engines" in str(find_float_baseline(int8_graph(student, "tensorrt"), "student", (), ()))


def test_engine_is_not_measured_without_its_gpu(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = int8_engine(student, TensorRTConfig(), gpus=("SM86", "SM89"))
    monkeypatch.setattr(float_baseline, "cuda_driver_error", lambda: "no GPU")
    assert find_float_baseline(engine, "student", (), ()) == "no GPU"
    monkeypatch.setattr(float_baseline, "cuda_driver_error", lambda: None)
    monkeypatch.setattr(float_baseline, "gpu_name", lambda: "SM120")
    assert find_float_baseline(engine, "student", (), ()) == "built for SM86, SM89, and this GPU is SM120"


@pytest.mark.usefixtures("with_gpu")
def test_engine_is_compared_with_one_in_fp16_of_the_same_settings(student: Artifact) -> None:
    config = TensorRTConfig(gpus=("sm86",), optimal_batch_size=4, workspace_mib=99)
    found = find_float_baseline(int8_engine(student, config, gpus=("SM86",)), "student", (), ())
    assert isinstance(found, FloatBaseline)
    graph, engine = found.stages
    expected = ONNXConfig("fp16", "tensorrt-rtx", input_type="uint8", license="MIT")
    assert (graph.config, graph.source) == (expected, "student")
    assert (engine.config, engine.source) == (config, graph.name)
    assert (found.runner, found.float_runner, found.device, found.batch_sizes) == (
        "tensorrt",
        "tensorrt",
        "cuda",
        (1, 4),
    )


def test_reason_is_said_where_nothing_can_be_compared(student: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = int8_graph(student, "onnxruntime")
    assert "FP32 ancestor" in str(find_float_baseline(graph, None, (), ()))
    bare = dataclasses.replace(graph, lineage=())
    assert "does not say how it was exported" in str(find_float_baseline(bare, "student", (), ()))
    older = dataclasses.replace(record(ONNXConfig()), config={"unknown": 1})
    assert "does not say" in str(find_float_baseline(dataclasses.replace(graph, lineage=(older,)), "student", (), ()))
    monkeypatch.setattr("convnext_deploy.runners.openvino.is_installed", lambda: False)
    assert "pip install" in str(find_float_baseline(int8_graph(student, "openvino"), "student", (), ()))
