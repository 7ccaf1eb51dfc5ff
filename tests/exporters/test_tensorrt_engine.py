"""Engines from the real TensorRT-RTX, which builds without a GPU; its errors in one line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.tensorrt_engine import Profile, build_engine, check_gpus, create_logger
from convnext_deploy.progress import Progress, SilentProgress, Task
from tests.exporters.conftest import Network
from tests.exporters.plan_text import read_products
from tests.exporters.test_qdq import Graph, quantized_products

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")


def build(path: Path, gpu: str = "sm86", progress: Progress | None = None, maximum: int = 8) -> bytes:
    """Build an engine with settings that fit a small network."""
    return build_engine(
        path,
        flavor="tensorrt-rtx",
        gpu=gpu,
        profile=Profile(1, 1, maximum),
        workspace_mib=256,
        optimization_level=1,
        progress=progress or SilentProgress(),
    )


def is_well_formed(plan: bytes) -> bool:
    """Whether TensorRT-RTX recognizes the header of a plan; without a GPU it can tell no more."""
    runtime = trt.Runtime(create_logger(trt))
    _, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    return not diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


@pytest.mark.parametrize("gpu", ["sm86", "sm89"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_build_engine_builds_a_well_formed_plan(network: Network, gpu: str, precision: str) -> None:
    plan = build(network.path if precision == "fp32" else network.quantized_path, gpu)
    assert len(plan) > 100_000
    assert is_well_formed(plan)
    assert not is_well_formed(plan[1:])


def test_build_engine_makes_int8_smaller_than_fp32(small_artifacts: dict[str, Artifact]) -> None:
    quantized = small_artifacts["engine"].main_file.stat().st_size
    assert quantized < 0.8 * len(build(small_artifacts["onnx-fp32"].main_file))


def test_build_engine_computes_exactly_the_quantized_products_in_int8(network: Network) -> None:
    # TensorRT says nothing when it takes a quantized product for a float one, so the plan itself is asked.
    products = read_products(build(network.quantized_path))
    if not products:
        pytest.skip(f"TensorRT-RTX {trt.__version__} does not keep readable code in its plans")
    graph = Graph(network.quantized.graph)
    expected = {product.node.name for product in quantized_products(graph)}
    assert {product.name for product in products if product.types == ("int8", "int8")} == expected
    rest = {node.name for node in graph.of_type("Conv", "MatMul", "Gemm")} - expected
    assert {product.name for product in products if product.types == ("float", "float")} == rest


def test_build_engine_computes_nothing_in_int8_when_the_graph_is_float(network: Network) -> None:
    products = read_products(build(network.path))
    if not products:
        pytest.skip(f"TensorRT-RTX {trt.__version__} does not keep readable code in its plans")
    assert {product.types for product in products} == {("float", "float")}


def test_build_engine_reports_progress(networks: dict[str, Network]) -> None:
    class Recorder(SilentProgress):
        tasks: list[list[Any]] = []  # noqa: RUF012  (a fresh class for this test)

        @contextmanager
        def task(self, description: str, total: int) -> Iterator[Task]:
            entry: list[Any] = [description, total, 0]
            self.tasks.append(entry)

            class Recorded:
                def advance(self, steps: int = 1, note: str = "") -> None:
                    entry[2] += steps

            yield Recorded()

    build(networks["v1"].path, progress=Recorder())
    ((description, total, done),) = Recorder.tasks
    assert "sm86" in description
    assert total == done > 0


def test_build_engine_names_the_way_out_when_the_gpu_is_an_orin(networks: dict[str, Network]) -> None:
    with pytest.raises(ExportError, match=r"^[^\n]*sm87[^\n]*Orin[^\n]*--format tensorrt[^\n]*$"):
        build(networks["v1"].path, "sm87")


def test_build_engine_suggests_a_gpu_when_the_name_is_unknown(networks: dict[str, Network]) -> None:
    with pytest.raises(ExportError, match=r"^[^\n]*'sm98'[^\n]*Did you mean 'sm89'\?[^\n]*Known: [^\n]*sm86[^\n]*$"):
        build(networks["v1"].path, "sm98")


def test_check_gpus_accepts_any_case_and_names_the_wrong_one() -> None:
    check_gpus(trt, ("sm86", "SM89"))
    with pytest.raises(ExportError, match="'gfx90a'"):
        check_gpus(trt, ("sm86", "gfx90a"))


def test_build_engine_gives_the_words_of_tensorrt_when_the_build_fails(networks: dict[str, Network]) -> None:
    # Turing has no FP32 matrix products in TensorRT-RTX.
    with pytest.raises(ExportError, match=r"^tensorrt-rtx could not build[^\n]*float\.onnx[^\n]*SM75[^\n]*FP32[^\n]*$"):
        build(networks["v1"].path, "sm75")


def test_build_engine_works_again_after_a_failed_build(networks: dict[str, Network]) -> None:
    with pytest.raises(ExportError):
        build(networks["v1"].path, "sm75")
    assert is_well_formed(build(networks["v1"].path))


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
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 8, 8])
    node = helper.make_node("Frobnicate", ["images"], ["logits"], domain="org.example")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("org.example", 1)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", [value], [result]), opset_imports=opsets, ir_version=10),
        tmp_path / "model.onnx",
    )
    with pytest.raises(ExportError, match=r"^[^\n]*Frobnicate[^\n]*$"):
        build(tmp_path / "model.onnx")


def test_build_engine_raises_when_the_batch_of_the_graph_is_fixed(networks: dict[str, Network], tmp_path: Path) -> None:
    graph = copy.deepcopy(networks["v1"].graph)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"^[^\n]*profile[^\n]*$"):
        build(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [None, b"no network, just words\n", b""], ids=["missing", "text", "empty"])
def test_build_engine_raises_when_the_file_is_no_onnx(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"^[^\n]*model\.onnx[^\n]*$"):
        build(tmp_path / "model.onnx")


def test_create_logger_keeps_errors_and_forgets_the_rest() -> None:
    logger = create_logger(trt)
    for name, severity in trt.ILogger.Severity.__members__.items():
        logger.log(severity, name)
    assert logger.errors == ["INTERNAL_ERROR", "ERROR"]
