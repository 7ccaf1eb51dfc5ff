"""The stage that builds engines: GPUs by name, batch sizes, and what became INT8; with the real TensorRT-RTX and stand-ins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from convnext_deploy.artifacts.artifact import Artifact, describe_file, read_artifact, write_manifest
from convnext_deploy.artifacts.details import ONNXDetails, PrecisionReport, Profile
from convnext_deploy.artifacts.spec import GraphIO, ModelSpec, default_preprocess
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, ExportError, RecipeError
from convnext_deploy.exporters.tensorrt import bindings as tensorrt_releases
from convnext_deploy.exporters.tensorrt import build_options as tensorrt_options
from convnext_deploy.graphs import engine_precisions
from convnext_deploy.stages import context, tensorrt
from convnext_deploy.system.execution import Execution
from tests.details import engine_details
from tests.exporters.quantized_product import write_product
from tests.exporters.recorded_progress import RecordingProgress
from tests.exporters.tensorrt_stand_in import RELEASES, Script, create_stand_in


def as_artifact(path: Path, io: GraphIO | None = None, precision: str = "int8") -> Artifact:
    """Return an ONNX file as an artifact."""
    spec = ModelSpec("convnext_atto", 3)
    return Artifact(
        path.parent,
        ONNXDetails("tensorrt", io=io or GraphIO()),
        precision,
        spec,
        None,
        default_preprocess(32),
        (describe_file(path),),
    )


def run(config: TensorRTConfig, source: Artifact, folder: Path, progress: RecordingProgress | None = None) -> Artifact:
    """Run the stage into a folder, and return what its manifest tells."""
    folder.mkdir()
    stage = context.StageContext(
        "engine", folder, None, Execution(progress=progress or RecordingProgress()), folder / "cache"
    )
    write_manifest(tensorrt.run(config, source, stage))
    return read_artifact(folder)


@pytest.fixture
def convolution(tmp_path: Path) -> Artifact:
    """One INT8 convolution in FP16, which becomes INT8 everywhere but on Turing."""
    return as_artifact(write_product(tmp_path, "Conv", dtype=np.float16))


def test_run_builds_one_plan_for_each_compute_capability(convolution: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    progress = RecordingProgress()
    config = TensorRTConfig(gpus=("rtx-4070,sm86", "RTX 4060 Ti"), optimal_batch_size=2, max_batch_size=4)
    engine = run(config, convolution, tmp_path / "engine", progress)
    assert [file.name for file in engine.files] == ["model.sm89.plan", "model.sm86.plan"]
    assert [task.description for task in progress.tasks] == ["engine tensorrt-rtx SM89", "engine tensorrt-rtx SM86"]
    assert progress.said[0] == "engine: SM89: 1 of 1 INT8 MatMul/Conv nodes run in INT8 (all: 1 INT8)"
    details = engine_details(engine)
    assert (details.flavor, details.gpus) == ("tensorrt-rtx", ("SM89", "SM86"))
    assert details.batch == Profile(1, 2, 4)
    assert details.precisions["SM86"] == PrecisionReport({"INT8": 1}, 1, (), ())
    assert not [line for line in details.warnings if line.startswith("SM")]


def test_run_keeps_what_the_graph_takes_and_gives(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = as_artifact(write_product(tmp_path, "MatMul"), io=GraphIO(input_layout="nhwc"))
    assert run(TensorRTConfig(gpus=("sm86",)), source, tmp_path / "engine").io == GraphIO(input_layout="nhwc")


def test_run_warns_of_a_product_that_falls_back(convolution: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    progress = RecordingProgress()
    engine = run(TensorRTConfig(gpus=("rtx-2060",)), convolution, tmp_path / "engine", progress)
    assert "SM75: 1 of 1 INT8 MatMul/Conv nodes run in float: layer: FP16" in engine_details(engine).warnings
    assert engine_details(engine).precisions == {"SM75": PrecisionReport({"FP16": 1}, 1, ("layer: FP16",), ())}
    assert progress.said == ["engine: SM75: 0 of 1 INT8 MatMul/Conv nodes run in INT8 (all: 1 FP16)"]


def test_run_raises_when_a_product_falls_back_under_strict(convolution: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    config = TensorRTConfig(gpus=("sm75",), strict=True)
    with pytest.raises(
        ExportError, match=r"^SM75: 1 of 1 INT8 MatMul/Conv nodes run in float: layer: FP16\. Leave strict out[^\n]*$"
    ):
        run(config, convolution, tmp_path / "engine")


def test_run_warns_when_the_plan_cannot_be_read(
    convolution: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(engine_precisions, "read_plan_nodes", lambda plan: [])
    engine = run(TensorRTConfig(gpus=("sm86",), strict=True), convolution, tmp_path / "engine")
    assert engine_details(engine).precisions == {"SM86": None}
    assert (
        "SM86: the engine does not tell which of the 1 INT8 MatMul/Conv nodes run in INT8"
        in engine_details(engine).warnings
    )


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (("sm86", "orin-nano"), r"a Jetson Orin \(SM87\)[^\n]*--format tensorrt"),
        (("sm86", "h100"), "SM90, only for"),
        (("sm86", "rtx-4071"), "Did you mean 'rtx-4070'"),
    ],
)
def test_run_refuses_a_gpu_before_the_first_build(
    convolution: Artifact, tmp_path: Path, gpus: tuple[str, ...], said: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    progress = RecordingProgress()
    with pytest.raises(ExportError, match=said):
        run(TensorRTConfig(gpus=gpus), convolution, tmp_path / "engine", progress)
    assert progress.tasks == []


def test_run_names_the_cure_when_the_gpu_is_turing_and_the_graph_fp32(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source, progress = as_artifact(write_product(tmp_path, "MatMul")), RecordingProgress()
    with pytest.raises(ExportError, match=r"^'layer' is a MatMul in FP32\.[^\n]*--precision fp16\.$"):
        run(TensorRTConfig(gpus=("sm86", "t4")), source, tmp_path / "engine", progress)
    assert progress.tasks == []


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_run_raises_when_the_file_is_no_onnx(tmp_path: Path, content: bytes | None) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "model.onnx"
    path.write_bytes(content or b"x")
    source = as_artifact(path)
    if content is None:
        path.unlink()
        path.mkdir()
    with pytest.raises(ArtifactError, match=r"^[^\n]*model\.onnx[^\n]*$"):
        run(TensorRTConfig(gpus=("sm86",)), source, tmp_path / "engine")


LAYERS = {
    "Layers": [
        {
            "Name": "node_1",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Name": "q", "DataType": "Int8", "Format": "Row major", "Format/Datatype": "Row major Int8 format"}
            ],
            "Weights": {"Type": "Int8", "Count": 1024},
        }
    ]
}


@pytest.fixture
def script() -> Script:
    return Script(input_shape=(-1, 16, 8, 8), input_type="HALF", layers=json.dumps(LAYERS))


@pytest.fixture(params=RELEASES)
def standard(request: pytest.FixtureRequest, script: Script, monkeypatch: pytest.MonkeyPatch) -> str:
    """A release of standard TensorRT on a machine that looks as if it had a GPU."""
    stand_in = create_stand_in(request.param, script)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    for module in (tensorrt_options, tensorrt_releases):
        monkeypatch.setattr(module, "cuda_driver_error", lambda: None)
    return str(request.param)


@pytest.mark.usefixtures("standard")
def test_run_asks_the_engine_inspector_of_standard_tensorrt(
    convolution: Artifact, script: Script, tmp_path: Path
) -> None:
    config = TensorRTConfig("tensorrt", optimal_batch_size=2, max_batch_size=4, strict=True)
    engine = run(config, convolution, tmp_path / "engine")
    assert [file.name for file in engine.files] == ["model.plan"]
    assert engine_details(engine).gpus == ()
    assert engine_details(engine).precisions == {"this GPU": PrecisionReport({"INT8": 1}, 1, (), ())}
    assert script.batches == [(2, 16, 8, 8)]


@pytest.mark.usefixtures("standard")
def test_run_judges_what_the_engine_inspector_says(convolution: Artifact, script: Script, tmp_path: Path) -> None:
    script.layers = script.layers.replace("Int8", "Half")
    engine = run(TensorRTConfig("tensorrt"), convolution, tmp_path / "engine")
    assert engine_details(engine).warnings == ("this GPU: 1 of 1 INT8 MatMul/Conv nodes run in float: layer: FP16",)
    with pytest.raises(ExportError, match="this GPU: 1 of 1"):
        run(TensorRTConfig("tensorrt", strict=True), convolution, tmp_path / "strict")


@pytest.mark.usefixtures("standard")
def test_run_reports_no_precisions_of_a_plan_without_weights(
    convolution: Artifact, script: Script, tmp_path: Path
) -> None:
    engine = run(TensorRTConfig("tensorrt", stripped=True), convolution, tmp_path / "engine")
    assert engine_details(engine).stripped
    assert "Runtime" not in script.built
    assert engine_details(engine).precisions == {"this GPU": None}


@pytest.mark.usefixtures("standard")
def test_run_keeps_the_warnings_of_tensorrt(convolution: Artifact, script: Script, tmp_path: Path) -> None:
    script.warnings = ("slow", "slow")
    assert engine_details(run(TensorRTConfig("tensorrt"), convolution, tmp_path / "engine")).warnings == (
        "TensorRT: slow",
    )


def test_run_says_that_standard_tensorrt_needs_a_gpu(
    convolution: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_releases, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^[^\n]*no GPU; run this command on the device[^\n]*$"):
        run(TensorRTConfig("tensorrt"), convolution, tmp_path / "engine")


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": ()},
        {"gpus": ("sm86", " , ")},
        {"workspace_mib": 0},
        {"workspace_mib": 2**20 + 1},
        {"optimization_level": 6},
        {"optimal_batch_size": 9},
        {"optimal_batch_size": 0},
        {"timing_cache": ""},
    ],
)
def test_config_refuses_what_no_build_can_have(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        TensorRTConfig(**wrong)


def test_run_refuses_scales_that_the_graph_computes(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7.1 would end the process with a segmentation fault."""
    path = write_product(tmp_path, "Conv")
    proto = onnx.load(path)
    graph = proto.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "scale":
                node.input[place] = "computed_scale"
    graph.node.insert(0, onnx.helper.make_node("Abs", ["scale"], ["computed_scale"]))
    onnx.save(proto, path)
    with pytest.raises(ExportError, match="takes the scale of its activations from the graph"):
        run(TensorRTConfig(gpus=("sm86",)), as_artifact(path), tmp_path / "out")
