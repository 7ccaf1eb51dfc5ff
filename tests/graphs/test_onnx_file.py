"""What is said about whole files: ours, timm's from both exporters, those of `quantize_static` and of Model Optimizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType

from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.lint.onnx_summary import ONNXRecord, count_operators, inspect_onnx
from convnext_deploy.graphs.onnx_view import external_tensors, open_view
from convnext_deploy.pipeline.open_artifact import open_input
from tests.exporters.conftest import Network
from tests.graphs.others_graphs import (
    analyze,
    conv,
    export_new,
    export_old,
    graph_of,
    matmul,
    quantize_with_onnxruntime,
    random_weight,
    timm_model,
)
from tests.shared import heavy_except

GOLDEN = Path(__file__).parents[1] / "golden" / "onnx" / "model_optimizer-0.47.0-int8.onnx"
BLOCKS = 4
GOOD_OPTIONS = {
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "op_types_to_quantize": ["Conv", "MatMul", "Gemm"],
    "extra_options": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul", "Gemm"],
    },
}


def serious(record: ONNXRecord) -> dict[str, int]:
    return {finding.name: len(finding.places) for finding in record.findings if finding.severity != "note"}


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm ConvNeXt V2 of four blocks, from the exporter of today."""
    return export_new(timm_model(2), tmp_path_factory.mktemp("timm") / "model.onnx")


def test_our_int8_file_is_told_in_full(network: Network) -> None:
    found = inspect_onnx(network.quantized_path)
    assert (found.opsets, found.ir_version, found.metadata) == ({"ai.onnx": 20}, 10, {"precision": "any"})
    (images,), (logits,) = found.inputs, found.outputs
    assert (images.name, images.type, images.shape) == ("images", "FP32", ("batch", network.in_channels, 32, 32))
    assert (logits.name, logits.shape) == ("logits", ("batch", network.classes))
    assert found.dynamic_batch
    sites = network.quantized.sites
    assert {q.layer for q in found.quantized} == set(sites)
    for q in found.quantized:
        assert q.activation is not None
        assert q.weight is not None
        axis = 0 if q.operator == "Conv" else 1
        assert (q.activation.type, q.activation.zero_point, q.activation.granularity) == ("INT8", "0", "per tensor")
        assert (q.weight.type, q.weight.granularity) == ("INT8", f"per channel, axis {axis}")
        assert q.precision == "INT8"
        assert not q.output_quantized
    depthwise = sum(network.depths)
    assert found.operators["Conv"] == {"FP32": depthwise + 1, "INT8": 3}
    assert sum(found.operators["MatMul"].values()) == 2 * depthwise


def test_layers_are_listed_by_size_and_add_up(network: Network) -> None:
    found = inspect_onnx(network.quantized_path)
    sizes = [layer.size_bytes for layer in found.layers]
    assert sizes == sorted(sizes, reverse=True)
    stored = sum(numpy_helper.to_array(tensor).nbytes for tensor in network.quantized.graph.graph.initializer)
    assert sum(sizes) == stored
    by_layer = {layer.layer: layer.size_bytes for layer in found.layers}
    site = network.quantized.sites["stages.3.0.pwconv1"]
    outputs = site.weight.shape[0]
    # integers, scales and zero points of the weight, the bias, and those of the input
    assert by_layer["stages.3.0.pwconv1"] in (site.weight.size + 9 * outputs, site.weight.size + 9 * outputs + 5)


@pytest.mark.heavy
@pytest.mark.parametrize("dynamic", heavy_except((True,), (True, False)))
def test_timm_file_of_today_breaks_no_rule_but_that_of_a_frozen_batch(
    dynamic: bool, timm_file: Path, tmp_path: Path
) -> None:
    path = timm_file if dynamic else export_new(timm_model(2), tmp_path / "model.onnx", dynamic=False)
    found = inspect_onnx(path)
    assert serious(found) == ({} if dynamic else {"frozen-batch": 1})
    assert found.dynamic_batch == dynamic
    assert found.producer.startswith("pytorch")
    assert {"stem.0", "stages.3.blocks.0.mlp.fc1", "head.fc"} <= {layer.layer for layer in found.layers}
    assert found.operators["Gelu"] == {"FP32": BLOCKS}


@pytest.mark.parametrize(
    ("opset", "broken"),
    [(13, {"decomposed-layer-norm": 9, "decomposed-gelu": BLOCKS}), (17, {"decomposed-gelu": BLOCKS})],
)
def test_file_of_the_former_exporter_has_norms_and_gelus_in_pieces(
    opset: int, broken: dict[str, int], tmp_path: Path
) -> None:
    found = inspect_onnx(export_old(timm_model(2), tmp_path / "model.onnx", opset))
    assert serious(found) == broken
    assert found.operators["MatMul"] == {"FP32": 2 * BLOCKS}
    assert "stages.0.blocks.0.mlp.fc1" in {layer.layer for layer in found.layers}


@pytest.mark.heavy
def test_version_1_of_timm_keeps_its_layer_scale_apart(tmp_path: Path) -> None:
    found = inspect_onnx(export_new(timm_model(1), tmp_path / "model.onnx"))
    assert serious(found) == {}
    assert [len(finding.places) for finding in found.findings if finding.name == "layer-scale-not-folded"] == [BLOCKS]


def test_quantize_static_with_its_defaults_breaks_many_rules(timm_file: Path, tmp_path: Path) -> None:
    found = inspect_onnx(quantize_with_onnxruntime(timm_file, tmp_path / "model.onnx"))
    broken = serious(found)
    assert {"zero-point-not-zero", "bias-int32", "pair-before-float-operator", "quantized-sum"} <= broken.keys()
    products = 4 + BLOCKS + 2 * BLOCKS + 1  # stem and downsampling, depthwise, linear layers, head
    assert len(found.quantized) == broken["weight-scale-per-tensor"] == products
    assert broken["pair-before-activation"] == broken["int8-depthwise"] == BLOCKS
    assert {"stem.0", "stages.0.blocks.0.mlp.fc1", "head.fc"} <= {q.layer for q in found.quantized}


def test_quantize_static_with_the_options_of_the_fixes_has_only_its_fp32_rest(timm_file: Path, tmp_path: Path) -> None:
    depthwise = [q for q in inspect_onnx(timm_file).layers if "conv_dw" in q.layer]
    assert len(depthwise) == BLOCKS
    graph = onnx.load(timm_file).graph
    excluded = [n.name for n in graph.node if n.op_type == "Conv" and any("conv_dw" in name for name in n.input)]
    good = quantize_with_onnxruntime(timm_file, tmp_path / "model.onnx", **GOOD_OPTIONS, nodes_to_exclude=excluded)
    found = inspect_onnx(good)
    assert serious(found).keys() == {"fp32-beside-int8"}
    assert {(q.precision, q.output_quantized) for q in found.quantized} == {("INT8", False)}
    assert {q.weight.granularity for q in found.quantized if q.weight is not None} == {
        "per channel, axis 0",
        "per channel, axis 1",
    }


def test_quantize_static_with_depthwise_layers_rounds_the_residual_stream(timm_file: Path, tmp_path: Path) -> None:
    found = inspect_onnx(quantize_with_onnxruntime(timm_file, tmp_path / "model.onnx", **GOOD_OPTIONS))
    assert serious(found).keys() == {"fp32-beside-int8", "int8-depthwise", "quantized-sum"}


def test_quantize_static_to_integer_operators_is_named_unfit(timm_file: Path, tmp_path: Path) -> None:
    path = quantize_with_onnxruntime(timm_file, tmp_path / "model.onnx", quant_format=QuantFormat.QOperator)
    found = inspect_onnx(path)
    assert "integer-operators" in serious(found)
    assert found.operators["QLinearMatMul"] == {"INT8": 2 * BLOCKS}


def test_file_of_model_optimizer_is_read_with_the_rules_that_it_breaks() -> None:
    found = inspect_onnx(GOLDEN)
    assert len(found.quantized) == 7
    assert {q.precision for q in found.quantized} == {"INT8"}
    assert {q.operator for q in found.quantized} == {"Conv", "depthwise Conv", "MatMul", "Gemm"} - {"Gemm"}
    assert serious(found) == {
        "int8-depthwise": 1,
        "fp16-result-of-int8": 2,
        "pair-before-float-operator": 6,
        "quantized-sum": 2,
        "squares-in-fp16": 1,
    }
    assert {finding.name for finding in found.findings} >= {"weight-kept-as-float", "norm-of-fp16"}
    assert found.operators["LayerNormalization"] == {"FP16": 6}


def test_weights_beside_the_file_are_found_and_counted(timm_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(timm_file), path, save_as_external_data=True, location="model.data", size_threshold=0)
    inside, beside = inspect_onnx(timm_file), inspect_onnx(path)
    (finding,) = [finding for finding in beside.findings if finding.name == "weights-beside-the-file"]
    assert finding.places == ("model.data",)
    assert beside.layers == inside.layers
    assert beside.operators == inside.operators
    assert beside.external_bytes == sum(layer.size_bytes for layer in beside.layers)
    assert inside.external_bytes == 0


def test_values_beside_the_file_are_looked_at(tmp_path: Path) -> None:
    model = conv(z=np.int8(3), ws=np.full(4, -1, np.float32))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    assert {"zero-point-not-zero", "scale-not-positive"} <= serious(inspect_onnx(tmp_path / "model.onnx")).keys()


def test_products_count_by_the_type_that_they_compute_in() -> None:
    cast = "xh = Cast <to = 10> (xd) wh = Cast <to = 10> (wd) y = MatMul (xh, wh)"
    pair = "q = QuantizeLinear (x, s, z) xd = DequantizeLinear (q, s, z) wd = DequantizeLinear <axis = 1> (w, ws, wz)"
    found = count_operators(analyze(matmul(f"{pair} {cast}", y="float16[batch,6,n]")))
    assert found["MatMul"] == {"INT8": 1}
    half: dict[str, Any] = {"x": "float16[batch,6,16]", "y": "float16[batch,6,n]"}
    product = graph_of("y = MatMul (x, w)", w=random_weight(16, 4, dtype=np.float16), **half)
    assert count_operators(analyze(product)) == {"MatMul": {"FP16": 1}}


def test_types_are_told_where_shape_inference_gives_up() -> None:
    body = "a = com.microsoft.Mystery (x) b = Cast <to = 10> (a) c = com.microsoft.Mystery (b) d = Shape (c) y = Mul (a, a)"
    found = count_operators(analyze(graph_of(body)))
    assert found["Mystery"] == {"FP32": 1, "FP16": 1}
    assert (found["Mul"], found["Shape"]) == ({"FP32": 1}, {"INT64": 1})


def test_nodes_of_local_functions_are_counted() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
    g (float[n,4] x) => (float[n,4] y) { a = own.twice (x) y = own.twice (a) }
    <domain: "own", opset_import: ["" : 20]> twice (v) => (w) { w = Add (v, v) }"""
    assert count_operators(analyze(onnx.parser.parse_model(text))) == {"Add": {"FP32": 2}}


def test_record_is_json(network: Network) -> None:
    found = inspect_onnx(network.quantized_path)
    record = json.loads(found.to_json())
    assert record["format"] == "onnx"
    assert record["quantized"][0]["weight"]["type"] == "INT8"
    assert len(record["layers"]) == len(found.layers)
    assert record["findings"][0]["places"] == list(found.findings[0].places)


def test_function_of_another_opset_is_one_line_for_every_verb(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "own" : 1]>\n'
        "g (float[n,3,8,8] images) => (float[n,3,8,8] y) { y = own.f (images) }\n"
        '<domain: "own", opset_import: ["" : 17]>\nf (a) => (b) { b = Relu (a) }'
    )
    onnx.save(model, tmp_path / "a.onnx")
    for read in (inspect_onnx, open_input):
        with pytest.raises(ArtifactError, match=r"a\.onnx contradicts itself \(Opset mismatch .*export it again\.$"):
            read(tmp_path / "a.onnx")


def test_sequence_is_no_image(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        "g (seq(float[n,3,8,8]) images) => (float y) <int64 z = {0}> { y = SequenceAt (images, z) }"
    )
    onnx.save(model, tmp_path / "a.onnx")
    found = {finding.name: finding for finding in inspect_onnx(tmp_path / "a.onnx").findings}
    assert found["input-type"].places == ("images, no tensor but a sequence",)
    with pytest.raises(ArtifactError, match="none of which is known to be scores"):
        open_input(tmp_path / "a.onnx")


def test_weights_that_a_subgraph_keeps_beside_the_file_count(tmp_path: Path) -> None:
    branch = "() => (float[n,4] o) <float[4] v = {1, 2, 3, 4}> { o = Add (x, v) }"
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        "g (float[n,4] x) => (float[n,4] y) <bool c = {1}> "
        f"{{ y = If (c) <then_branch = t {branch}, else_branch = e {branch}> }}"
    )
    for place, name in enumerate(("then.bin", "else.bin")):
        tensor = model.graph.node[0].attribute[place].g.initializer[0]
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values, "v"))
        (tmp_path / name).write_bytes(values.tobytes())
        onnx.external_data_helper.set_external_data(tensor, name)
        tensor.ClearField("raw_data")
    onnx.save(model, tmp_path / "a.onnx")
    assert sorted(str(each.location) for each in external_tensors(open_view(tmp_path / "a.onnx").model)) == [
        "else.bin",
        "then.bin",
    ]
    (tmp_path / "then.bin").unlink()
    with pytest.raises(ArtifactError, match=r"keeps its weights in 'then\.bin' beside it, which is missing"):
        open_view(tmp_path / "a.onnx")
