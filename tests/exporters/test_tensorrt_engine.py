"""Engines from the real TensorRT-RTX, which builds without a GPU; its errors in one line."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.tensorrt.bindings import create_logger
from convnext_deploy.exporters.tensorrt.build import Engine, build_engine, check_turing
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions, check_gpus
from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.system.progress import Progress, SilentProgress
from tests.exporters.conftest import Network
from tests.exporters.quantized_product import write_product
from tests.exporters.recorded_progress import RecordingProgress

pytestmark = pytest.mark.heavy

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")


def build(path: Path, gpu: str = "SM86", progress: Progress | None = None) -> Engine:
    """Build an engine with settings that fit a small network."""
    options = BuildOptions(Profile(1, 1, 8), workspace_mib=256, optimization_level=1)
    return build_engine(path, flavor="tensorrt-rtx", gpu=gpu, options=options, progress=progress or SilentProgress())


def is_well_formed(plan: bytes) -> bool:
    """Whether TensorRT-RTX recognizes the header of a plan; without a GPU it can tell no more."""
    runtime = trt.Runtime(create_logger(trt))
    _, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    return not diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


def write_model(
    folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], kind: int = TensorProto.FLOAT
) -> Path:
    """Write a graph that takes images `(batch, 3, 8, 8)`."""
    value = helper.make_tensor_value_info("images", kind, ["batch", 3, 8, 8])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 8, 8])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("org.example", 1)]
    graph = helper.make_graph(nodes, "g", [value], [result], initializers)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("gpu", ["SM86", "SM89"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_build_engine_builds_a_well_formed_plan(network: Network, gpu: str, precision: str) -> None:
    engine = build(network.path if precision == "fp32" else network.quantized_path, gpu)
    assert len(engine.plan) > 100_000
    assert is_well_formed(engine.plan)
    assert not is_well_formed(engine.plan[1:])
    assert (engine.batch, engine.warnings) == (Profile(1, 1, 8), ())


def test_build_engine_makes_int8_smaller_than_fp32(tmp_path: Path) -> None:
    path = write_product(tmp_path, "MatMul", width=1024)
    quantized, model = len(build(path).plan), onnx.load(path)
    (weight,) = (w for w in model.graph.initializer if w.name == "layer.weight")
    matmul = helper.make_node("MatMul", ["images", "layer.weight"], ["logits"], "node_1")
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(matmul)
    floats = numpy_helper.to_array(weight).astype(np.float32) * np.float32(0.01)
    model.graph.initializer.append(numpy_helper.from_array(floats, "layer.weight"))
    onnx.save(model, path)
    assert quantized < 0.5 * len(build(path).plan)


def test_build_engine_reports_the_phases_of_the_build(networks: dict[str, Network]) -> None:
    progress = RecordingProgress()
    build(networks["v1"].path, progress=progress)
    (task,) = progress.tasks
    assert "SM86" in task.description
    assert task.total == task.done == 100
    assert len(task.advances) >= 10
    assert all(steps > 0 for steps, _ in task.advances)
    assert {"cloning network graph", "building engine"} <= {note for _, note in task.advances}


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_build_engine_ends_at_once_with_what_its_progress_raises(
    networks: dict[str, Network], raised: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    progress = RecordingProgress(raised=raised("stop"))
    with pytest.raises(raised, match="stop"):
        build(networks["v1"].path, progress=progress)
    assert len(progress.tasks[0].advances) == 1
    assert capfd.readouterr() == ("", "")


def test_build_engine_ends_when_someone_presses_ctrl_c(networks: dict[str, Network]) -> None:
    path = networks["v1"].path
    progress = RecordingProgress(meanwhile=lambda: time.sleep(0.05))  # so that the build takes long enough
    pressed = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    pressed.start()
    with pytest.raises(KeyboardInterrupt):
        build(path, progress=progress)
    pressed.join()
    assert progress.tasks[0].done < 100
    assert not [thread for thread in threading.enumerate() if "tensorrt" in thread.name]


def test_check_gpus_names_the_ways_out_when_the_gpu_is_an_orin() -> None:
    check_gpus(trt, ("SM86", "SM120"))
    ways = r"export to ONNX, and on the device run --format tensorrt or the build_on_device\.sh of a bundle\."
    with pytest.raises(ExportError, match=rf"^[^\n]*a Jetson Orin \(SM87\), only for SM75, [^\n]*{ways}$"):
        check_gpus(trt, ("SM86", "SM87"))


@pytest.mark.parametrize("gpu", ["SM90", "SM100", "SM110"])
def test_check_gpus_refuses_what_tensorrt_rtx_lacks(gpu: str) -> None:
    with pytest.raises(ExportError, match=rf"cannot build for {gpu}, only for"):
        check_gpus(trt, (gpu,))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_check_turing_names_the_cure_when_the_graph_has_fp32_products(network: Network, precision: str) -> None:
    path = network.path if precision == "fp32" else network.quantized_path
    with pytest.raises(ExportError, match=r"^'stages\.0\.0\.pwconv1'[^\n]*FP32\.[^\n]*SM75[^\n]*--precision fp16\.$"):
        check_turing(open_view(path))


def test_check_turing_accepts_what_can_be_built_for_it(tmp_path: Path) -> None:
    path = write_model(
        tmp_path, [helper.make_node("Conv", ["images", "w"], ["logits"])], {"w": np.ones((4, 3, 1, 1), "f4")}
    )
    check_turing(open_view(path))
    assert is_well_formed(build(path, "SM75").plan)


def test_build_engine_gives_the_words_of_tensorrt_when_the_build_fails(networks: dict[str, Network]) -> None:
    # Turing has no FP32 matrix products in TensorRT-RTX.
    with pytest.raises(
        ExportError, match=r"^tensorrt-rtx could not build[^\n]*float\.onnx[^\n]*SM75[^\n]*--precision fp16\.$"
    ):
        build(networks["v1"].path, "SM75")


def test_build_engine_works_again_after_a_failed_build(networks: dict[str, Network]) -> None:
    with pytest.raises(ExportError):
        build(networks["v1"].path, "SM75")
    assert is_well_formed(build(networks["v1"].path).plan)


def test_build_engine_raises_when_a_zero_point_is_not_zero(networks: dict[str, Network], tmp_path: Path) -> None:
    graph = copy.deepcopy(networks["v1"].quantized.graph)
    node = next(node for node in graph.graph.node if node.op_type == "QuantizeLinear")
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[2])
    shape = numpy_helper.to_array(tensor).shape
    tensor.CopyFrom(numpy_helper.from_array(np.full(shape, 3, np.int8), tensor.name))
    onnx.save(graph, tmp_path / "shifted.onnx")
    with pytest.raises(ExportError, match=r"^[^\n]*shifted\.onnx: [^\n]*zero point[^\n]*$"):
        build(tmp_path / "shifted.onnx")


def test_build_engine_raises_when_an_operator_is_unknown(tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["images"], ["logits"], domain="org.example")
    with pytest.raises(ExportError, match=r"^[^\n]*Frobnicate[^\n]*$"):
        build(write_model(tmp_path, [node], {}))


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.FLOAT16])
def test_build_engine_takes_images_of_other_types(tmp_path: Path, kind: int) -> None:
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["float", "w"], ["logits"]),
    ]
    path = write_model(tmp_path, nodes, {"w": np.ones((4, 3, 1, 1), "f4")}, kind)
    assert is_well_formed(build(path).plan)


def test_build_engine_builds_for_a_frozen_batch(networks: dict[str, Network], tmp_path: Path) -> None:
    graph = copy.deepcopy(networks["v1"].graph)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, tmp_path / "model.onnx")
    engine = build(tmp_path / "model.onnx")
    assert is_well_formed(engine.plan)
    assert engine.batch == Profile(2, 2, 2)


@pytest.mark.parametrize("content", [None, b"no network, just words\n", b""], ids=["missing", "text", "empty"])
def test_build_engine_raises_when_the_file_is_no_onnx(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"^[^\n]*model\.onnx[^\n]*$"):
        build(tmp_path / "model.onnx")


def test_create_logger_keeps_errors_and_warnings_and_forgets_the_rest() -> None:
    logger = create_logger(trt)
    for name, severity in trt.ILogger.Severity.__members__.items():
        logger.log(severity, name)
    assert (logger.errors, logger.warnings) == (["INTERNAL_ERROR", "ERROR"], ["WARNING"])
