"""INT8 graphs: the rules that TensorRT's explicit quantization asks for."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.exporters.conftest import Network, QuantizedExport
from tests.exporters.qdq_graph import WEIGHT_AXIS, Graph, attribute, quantized_products


def site_count(model: nn.Module) -> int:
    """Return how many layers of a network the scheme quantizes."""
    scheme = resolve_scheme("tensorrt")
    return sum(
        scheme.is_site(name) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    )


def test_insert_qdq_quantizes_as_many_products_as_the_scheme_has_sites(export: QuantizedExport) -> None:
    count = len(list(quantized_products(Graph(export.graph))))
    assert count == site_count(export.model) == len(export.sites)


def test_insert_qdq_writes_no_pair_that_feeds_no_product(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    products = list(quantized_products(graph))
    assert len(graph.of_type("QuantizeLinear")) == len(products)
    assert len(graph.of_type("DequantizeLinear")) == 2 * len(products)


def test_insert_qdq_leaves_depthwise_convolutions_stem_and_head_in_float(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    (output,) = export.graph.graph.output
    kept = [n for n in graph.of_type("Conv") if (attribute(n, "group") or 1) > 1 or n.input[0] == "images"]
    kept += [n for n in graph.of_type("Gemm", "MatMul") if n.output[0] == output.name]
    depthwise = sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in export.model.modules())
    assert len(kept) == depthwise + 2
    for node in kept:
        assert not graph.comes_from_dq(node.input[0])
        assert graph.values[node.input[1]].data_type == TensorProto.FLOAT


def test_insert_qdq_writes_int8_zero_points_of_zero(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        assert len(node.input) == 3, f"{node.name} has no zero point: ONNX then takes it for uint8"
        assert graph.values[node.input[2]].data_type == TensorProto.INT8
        assert not graph.array(node.input[2]).any()
        assert graph.array(node.input[2]).shape == graph.array(node.input[1]).shape


def test_insert_qdq_writes_positive_float_scales(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        scale = graph.array(node.input[1])
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert np.isfinite(scale).all()


def test_insert_qdq_gives_activations_one_scalar_scale(export: QuantizedExport) -> None:
    # A scale of shape (1,) is not the same: TensorRT takes it for per-channel and silently computes the Conv in float.
    graph = Graph(export.graph)
    for product in quantized_products(graph):
        assert product.quantize.input[1:] == product.dequantize.input[1:]
        assert graph.array(product.quantize.input[1]).shape == ()


def test_insert_qdq_gives_weights_a_scale_per_output_channel_on_the_axis_that_tensorrt_reads(
    export: QuantizedExport,
) -> None:
    graph = Graph(export.graph)
    for product in quantized_products(graph):
        node, dequantize = product.node, product.dequantize_weight
        weight = graph.array(dequantize.input[0])
        axis = WEIGHT_AXIS[node.op_type]
        assert weight.dtype == np.int8
        assert attribute(dequantize, "axis") == axis
        assert graph.array(dequantize.input[1]).shape == (weight.shape[axis],)
        assert node.op_type != "Gemm" or attribute(node, "transB") == 1


def test_insert_qdq_keeps_biases_in_float(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    for product in quantized_products(graph):
        biases = list(product.node.input[2:])
        if product.node.op_type == "MatMul":
            (add,) = (n for n in graph.of_type("Add") if product.node.output[0] in n.input)
            biases = [name for name in add.input if name in graph.values]
        assert len(biases) == 1
        assert graph.values[biases[0]].data_type == TensorProto.FLOAT


def test_insert_qdq_writes_no_integer_operators_and_no_other_integer_types(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    forbidden = ("QLinear", "DynamicQuantize", "MatMulInteger", "ConvInteger")
    assert [node.op_type for node in graph.nodes if node.op_type.startswith(forbidden) or node.domain] == []
    assert not any(attribute(node, "output_dtype") for node in graph.of_type("QuantizeLinear"))
    quantized = {name for node in graph.of_type("QuantizeLinear", "DequantizeLinear") for name in node.input}
    for name, tensor in graph.values.items():
        assert tensor.data_type not in (TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32)
        assert tensor.data_type != TensorProto.INT8 or name in quantized


def test_insert_qdq_keeps_opset_20_and_at_most_ir_10(export: QuantizedExport) -> None:
    assert [(opset.domain, opset.version) for opset in export.graph.opset_import] == [("", 20)]
    assert export.graph.ir_version <= 10


def test_insert_qdq_uses_every_weight_once_and_leaves_nothing_unused(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    products = list(quantized_products(graph))
    weights = [p.dequantize_weight.input[0] for p in products]
    assert len(set(weights)) == len(weights)
    assert all(graph.uses[name] == 1 for name in weights)
    assert [name for name in graph.values if graph.uses[name] == 0] == []
    assert len(graph.values) == len(export.graph.graph.initializer)  # no name twice


def test_insert_qdq_sorts_nodes_topologically(export: QuantizedExport) -> None:
    known = {value.name for value in export.graph.graph.input} | {t.name for t in export.graph.graph.initializer}
    for node in export.graph.graph.node:
        assert set(node.input) - {""} <= known, f"{node.name} comes before its inputs"
        known |= set(node.output)


def test_insert_qdq_passes_the_full_checker(export: QuantizedExport) -> None:
    onnx.checker.check_model(export.graph, full_check=True)


def test_insert_qdq_does_not_change_the_float_graph(network: Network) -> None:
    before = network.graph.SerializeToString(deterministic=True)
    insert_qdq(network.graph, network.quantized.sites)
    assert network.graph.SerializeToString(deterministic=True) == before


def test_insert_qdq_returns_the_float_graph_when_there_are_no_sites(networks: dict[str, Network]) -> None:
    assert insert_qdq(networks["v1"].graph, {}) == networks["v1"].graph


def test_insert_qdq_raises_when_a_site_is_not_in_the_graph(networks: dict[str, Network]) -> None:
    site = next(iter(networks["v1"].quantized.sites.values()))
    with pytest.raises(ExportError, match=r"^[^\n]*stages\.9\.0\.pwconv1[^\n]*$"):
        insert_qdq(networks["v1"].graph, {**networks["v1"].quantized.sites, "stages.9.0.pwconv1": site})


def test_insert_qdq_raises_when_a_weight_has_another_shape(networks: dict[str, Network]) -> None:
    sites = dict(networks["v1"].quantized.sites)
    sites["stages.0.0.pwconv1"] = sites["stages.1.0.pwconv1"]
    with pytest.raises(ExportError, match=r"stages\.0\.0\.pwconv1' has shape \(16, 64\)[^\n]*\(32, 128\)"):
        insert_qdq(networks["v1"].graph, sites)


def test_insert_qdq_raises_when_the_weight_is_computed_in_the_graph(networks: dict[str, Network]) -> None:
    graph = copy.deepcopy(networks["v1"].graph)
    (node,) = (n for n in graph.graph.node if n.doc_string == "stages.0.0.pwconv1" and n.op_type == "MatMul")
    graph.graph.node.insert(0, helper.make_node("Identity", [node.input[1]], ["computed"]))
    node.input[1] = "computed"
    with pytest.raises(ExportError, match=r"stages\.0\.0\.pwconv1"):
        insert_qdq(graph, networks["v1"].quantized.sites)


def test_quantized_file_is_smaller_than_the_float_file(small_artifacts: dict[str, Artifact]) -> None:
    sizes = {name: Path(small_artifacts[name].main_file).stat().st_size for name in ("onnx-fp32", "onnx-int8")}
    assert sizes["onnx-int8"] < 0.4 * sizes["onnx-fp32"]
