"""Every variant in FP8: ONNX Runtime computes its file, TensorRT-RTX builds it, and every product asked for is in FP8."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from convnext_deploy.artifacts.details import PrecisionReport, Profile
from convnext_deploy.exporters.onnx.fp16 import find_islands
from convnext_deploy.exporters.tensorrt.build import build_engine
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions
from convnext_deploy.graphs.engine_precisions import read_plan_nodes, report_precisions
from convnext_deploy.graphs.onnx_view import open_view
from convnext_deploy.graphs.precision import read_precision
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.system.progress import SilentProgress
from tests.exporters.quantized_product import write_product
from tests.exporters.test_fp16 import evaluate
from tests.exporters.test_variants import logits_of
from tests.exporters.test_whole_table import Exported, export_all, run
from tests.shared import slow_except

PRODUCTS = 2 * 4 + 3  # linear layers of four blocks, downsampling convolutions


@pytest.fixture(scope="module", params=slow_except(("convnextv2_atto",), tuple(VARIANTS)))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_all(request.param, tmp_path_factory.mktemp(request.param), "tensorrt-fp8")


@pytest.mark.heavy
def test_onnxruntime_computes_fp8_as_pytorch_simulates_it(exported: Exported, request: pytest.FixtureRequest) -> None:
    images = exported.images
    expected, quantized = logits_of(exported.model, images), logits_of(exported.quantized, images)
    noise = np.abs(quantized - expected).mean()
    single, half = (run(exported.path(precision), images) for precision in ("fp8", "fp8-fp16"))
    # float32 in another order moves few values to the other side, each by a sixteenth; in wide networks they move more behind them
    is_small = request.node.callspec.params["exported"] == "convnextv2_atto"
    assert np.abs(single - quantized).mean() <= (0.3 if is_small else 0.6) * noise
    # FP16 moves a value at a rounding boundary to the other side more often, as with INT8
    assert np.abs(half - quantized).mean() <= 0.03 * np.abs(expected).max()


@pytest.mark.heavy
def test_file_is_strongly_typed_fp8_and_fp16(exported: Exported) -> None:
    proto = onnx.load(exported.path("fp8-fp16"))
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
    assert read_precision(open_view(exported.path("fp8-fp16"))) == "fp8-fp16"
    constants = {constant.name: constant for constant in proto.graph.initializer}
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 3 * PRODUCTS
    for node in pairs:
        scale, zero_point = (constants[name] for name in node.input[1:])
        assert zero_point.data_type == TensorProto.FLOAT8E4M3FN
        assert not any(zero_point.raw_data)
        assert numpy_helper.to_array(scale).min() >= 2.0**-14  # FP16 has all its digits
    weights = [constants[node.input[0]] for node in pairs if node.input[0] in constants]
    assert {weight.data_type for weight in weights} == {TensorProto.FLOAT8E4M3FN}
    assert sum(len(weight.raw_data) for weight in weights) == sum(np.prod(weight.dims) for weight in weights)


@pytest.mark.parametrize(("levels", "kind"), [(np.int8, "int8"), (ml_dtypes.float8_e4m3fn, "fp8")])
def test_products_stay_in_fp32_for_rtx_by_the_name_of_their_levels(
    tmp_path: Path, levels: type[np.generic], kind: str
) -> None:
    graph = onnx.load(write_product(tmp_path, "MatMul", levels=levels))
    for node in graph.graph.node:
        node.doc_string = "layer"
    islands = find_islands(graph, (), {}, int8_matmuls=True)
    assert islands == dict.fromkeys(["q", "d", "w", "logits"], kind)
    assert find_islands(graph, (), {}, int8_matmuls=False) == {}


@pytest.mark.slow
def test_engines_compute_every_product_asked_for_in_fp8(exported: Exported) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = exported.path("fp8-fp16")
    view = open_view(path)
    for gpu in ("SM89", "SM120"):
        options = BuildOptions(Profile(1, 1, 8), optimization_level=1)
        engine = build_engine(path, flavor="tensorrt-rtx", gpu=gpu, options=options, progress=SilentProgress())
        report = report_precisions(read_plan_nodes(engine.plan), view)
        assert report is not None
        nodes = {"FP8": PRODUCTS, "FP16": report.nodes.get("FP16", 0)}
        assert report == PrecisionReport(dict(sorted(nodes.items())), 0, (), (), requested_fp8=PRODUCTS), gpu


@pytest.mark.slow
def test_reference_evaluator_computes_fp8_as_onnxruntime_does(tmp_path: Path) -> None:
    found = export_all("convnext_atto", tmp_path, "tensorrt-fp8")
    images = found.images[:2]
    expected = run(found.path("fp8"), images)
    noise = np.abs(expected - logits_of(found.model, images)).mean()
    assert np.abs(evaluate(onnx.load(found.path("fp8")), images) - expected).mean() <= 0.3 * noise
