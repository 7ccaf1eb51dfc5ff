"""What became INT8: read from real plans of TensorRT-RTX, and from the engine inspector's JSON of TensorRT 10 and 11."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.details import PrecisionReport, Profile
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.exporters.tensorrt.build import build_engine
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions
from convnext_deploy.graphs.compute_nodes import find_compute_nodes
from convnext_deploy.graphs.engine_precisions import (
    PlanNode,
    inspect_engine,
    read_layers,
    read_plan_nodes,
    report_precisions,
)
from convnext_deploy.graphs.onnx_io import save_onnx
from convnext_deploy.graphs.onnx_view import GraphView, open_view
from convnext_deploy.models.variants import build_model
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, read_sites
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.system.progress import SilentProgress
from tests.exporters.conftest import Network
from tests.exporters.quantized_product import write_product
from tests.exporters.tensorrt_stand_in import RELEASES, Script, create_stand_in


@pytest.fixture
def trt() -> ModuleType:
    """TensorRT-RTX with readable plans."""
    module: ModuleType = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    if not module.__version__.startswith("1.7."):
        pytest.skip(f"whether TensorRT-RTX {module.__version__} keeps readable code in its plans is not known")
    return module


def report_of(path: Path, gpu: str = "SM86") -> PrecisionReport:
    """Build an engine and report its precisions."""
    options = BuildOptions(Profile(1, 1, 8), optimization_level=1)
    engine = build_engine(path, flavor="tensorrt-rtx", gpu=gpu, options=options, progress=SilentProgress())
    report = report_precisions(read_plan_nodes(engine.plan), open_view(path))
    assert report is not None
    return report


def test_report_precisions_finds_exactly_the_quantized_nodes_in_int8(trt: ModuleType, network: Network) -> None:
    # TensorRT says nothing when it takes a quantized product for a float one, so the plan itself is asked.
    products = find_compute_nodes(open_view(network.quantized_path)).compute_nodes
    asked = sum(node.quantized_type is not None for node in products)
    assert report_of(network.quantized_path) == PrecisionReport(
        {"FP32": len(products) - asked, "INT8": asked}, asked, (), ()
    )


def test_report_precisions_finds_nothing_in_int8_when_the_graph_is_float(trt: ModuleType, network: Network) -> None:
    products = find_compute_nodes(open_view(network.path)).compute_nodes
    assert report_of(network.path) == PrecisionReport({"FP32": len(products)}, 0, (), ())


def write_quantized(variant: str, image_size: int, path: Path) -> Path:
    """Write the INT8 graph of a variant with random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build_model(ModelSpec(variant, 10)).eval()
        images = torch.randn(2, 3, image_size, image_size)
    graph = export_float(model, 3, image_size)
    quantized = prepare(copy.deepcopy(model), resolve_scheme("tensorrt"))
    calibrate(quantized, [images], "minmax")
    save_onnx(insert_qdq(graph, read_sites(quantized)), path, {})
    return path


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("variant", "image_size", "linear"),
    [("convnext_atto", 32, 24), pytest.param("convnext_tiny", 224, 36, marks=pytest.mark.slow)],
)
def test_report_precisions_finds_linear_layers_and_downsampling_in_int8_and_depthwise_not(
    trt: ModuleType, tmp_path: Path, variant: str, image_size: int, linear: int
) -> None:
    path = write_quantized(variant, image_size, tmp_path / "model.onnx")
    depthwise, stem_and_head = linear // 2, 2
    assert report_of(path) == PrecisionReport(
        {"FP32": depthwise + stem_and_head, "INT8": linear + 3}, linear + 3, (), ()
    )
    float_layers = {p.layer for p in find_compute_nodes(open_view(path)).compute_nodes if p.quantized_type is None}
    assert {layer.rpartition(".")[2] for layer in float_layers} >= {"dwconv"}


def test_report_precisions_names_the_layer_that_falls_back(trt: ModuleType, tmp_path: Path) -> None:
    # a weight with scales along the wrong axis is computed in float, without a word
    path = write_product(tmp_path, "MatMul", axis=0)
    assert report_of(path) == PrecisionReport({"FP32": 1}, 1, ("layer: FP32",), ())


def test_report_precisions_tells_where_turing_falls_back(trt: ModuleType, tmp_path: Path) -> None:
    path = write_product(tmp_path, "Conv", dtype=np.float16)
    assert report_of(path, "SM75") == PrecisionReport({"FP16": 1}, 1, ("layer: FP16",), ())
    assert report_of(path, "SM86") == PrecisionReport({"INT8": 1}, 1, (), ())


def test_report_precisions_finds_nodes_that_have_no_name(trt: ModuleType, tmp_path: Path) -> None:
    assert report_of(write_product(tmp_path, "MatMul", name="")) == PrecisionReport({"INT8": 1}, 1, (), ())


@pytest.mark.parametrize(
    "plan", [b"", b"no plan", bytes(range(256)) * 50, b'corrltn={ name="x" output={"', b"\xff" * 9]
)
def test_read_plan_nodes_finds_none_in_what_is_no_plan(plan: bytes, tmp_path: Path) -> None:
    assert read_plan_nodes(plan) == []
    assert report_precisions(read_plan_nodes(plan), open_view(write_product(tmp_path, "Conv"))) is None


def test_read_plan_nodes_says_unknown_of_what_it_cannot_follow() -> None:
    (node,) = read_plan_nodes(b'corrltn={ name="x" output={"y" } input={"a" "b" } more')
    assert (node.name, node.precision) == ("x", "unknown")


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        (("INT8", "INT8"), "INT8"),
        (("FP8", "FP8"), "FP8"),
        (("INT8", "FP16"), "FP16"),
        (("FP32", "INT8"), "FP32"),
        ((), "unknown"),
    ],
)
def test_plan_node_is_int8_or_fp8_when_both_inputs_are(types: tuple[str, ...], precision: str) -> None:
    assert PlanNode("x", types).precision == precision


@pytest.fixture
def view(tmp_path: Path) -> GraphView:
    """A graph with one INT8 product, of the layer `layer` and the node `node_1`."""
    return open_view(write_product(tmp_path, "MatMul"))


def test_report_precisions_keeps_apart_what_the_engine_does_not_list(view: GraphView) -> None:
    listed = [PlanNode("another", ("FP32", "FP32"))]
    assert report_precisions(listed, view) is None
    assert report_precisions([], view) is None


def test_report_counts_fallbacks_and_unseen_nodes_in_its_summary() -> None:
    report = PrecisionReport({"FP32": 2, "INT8": 3, "unknown": 1}, 5, ("a: FP32",), ("b",))
    assert report.summary() == "3 of 5 INT8 MatMul/Conv nodes run in INT8 (all: 2 FP32, 3 INT8, 1 unknown)"


def layer_json(version: int, kind: str, **more: Any) -> str:
    """Return an engine inspector's JSON of TensorRT 10 or 11 with a pointwise layer and a product with this type of input."""
    words = {"INT8": "Int8", "FP16": "FP16", "FP32": "FP32"}[kind]
    if version == 10:
        row = {"Format/Datatype": f"Thirty-two wide channel vectorized row major {words} format"}
        ends: dict[str, Any] = {"Bindings": ["images", "logits"]}
    else:
        row = {"Format": "Thirty-two wide channel vectorized row major", "DataType": words}
        ends = {"I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "Float", "Dimensions": [-1, 4, 32]}]}
    product = {
        "Name": "__myl_Fc_myl0_1",
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Dimensions": [1, 4, 32], **row}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 4, 32], **row}],
        "TacticName": "",
        "Metadata": "[ONNX Layer: node_0]\x1f[ONNX Layer: node_1]",
        **more,
    }
    other = {"Name": "pwn", "LayerType": "kgen", "Inputs": [], "Outputs": [], "Metadata": "[ONNX Layer: node_1]"}
    return json.dumps({"Layers": [other, product], **ends})


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize("kind", ["INT8", "FP16", "FP32"])
def test_read_layers_reads_the_json_of_both_releases(view: GraphView, version: int, kind: str) -> None:
    found = read_layers(layer_json(version, kind, Weights={"Type": kind.title(), "Count": 1024}))
    assert {node.name for node in found} == {"node_0", "node_1"}
    report = report_precisions(found, view)
    assert report is not None
    assert (report.nodes, report.fallbacks) == ({kind: 1}, () if kind == "INT8" else (f"layer: {kind}",))


@pytest.mark.parametrize(
    ("tactic", "weights", "kind"),
    [
        ("sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize128x64x64", "Int8", "INT8"),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw", "Int8", "INT8"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n", "Int8", "FP16"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn", "Int8", "FP32"),
        ("sm80_xmma_gemm_f16f16_f16f16_f16_nn", "", "FP16"),
        ("some_new_kernel", "", "unknown"),
    ],
)
def test_read_layers_asks_the_kernel_when_the_type_of_the_input_is_open(tactic: str, weights: str, kind: str) -> None:
    layer = {
        "Name": "node_1 + node_2",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [-1, 3], "Format/Datatype": "N/A due to dynamic shapes"}],
        "Weights": {"Type": weights, "Count": 9},
        "TacticName": tactic,
    }
    found = read_layers(json.dumps({"Layers": [layer], "Bindings": []}))
    assert [(node.name, node.precision) for node in found] == [("node_1", kind), ("node_2", kind)]


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "{}", '{"Layers": "x"}', '{"Layers": ["conv_1", 3]}', '{"Layers": [{}]}', "null"]
)
def test_read_layers_finds_none_in_what_it_cannot_read(text: str) -> None:
    assert read_layers(text) == []


def test_read_layers_survives_a_product_layer_without_its_usual_fields() -> None:
    (found,) = read_layers('{"Layers": [{"LayerType": "gemm", "Inputs": [], "Weights": 3, "Name": null}]}')
    assert found.precision == "unknown"


@pytest.mark.parametrize("release", RELEASES)
def test_inspect_engine_asks_for_the_shapes_of_a_context(release: str) -> None:
    script = Script(layers="{}", plan=b"plan")
    stand_in: Any = create_stand_in(release, script)
    engine = stand_in.Runtime(stand_in.ILogger()).deserialize_cuda_engine(b"plan")
    context = engine.create_execution_context()
    context.set_input_shape("images", (1, 3, 32, 32))
    assert inspect_engine(stand_in, engine, context) == "{}"
