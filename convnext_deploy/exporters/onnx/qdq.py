"""Explicit quantization: rewrite a float ONNX graph so that it says which products run in INT8, as every runtime reads it.

Both inputs of a quantized product come from DequantizeLinear: weights are int8 initializers with a scale per output channel,
activations have one scale, biases are float. Where a site says so, its input is shifted before, or its output goes through a pair
as well, after a division where its channels have scales of their own. Symmetric int8 is what TensorRT's explicit quantization
reads; ONNX Runtime and OpenVINO read uint8 with a zero point too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.onnx.patch_linear import patch_rows
from convnext_deploy.quantization.prepare import ActivationGrid, QuantizedSite

_PRODUCTS = {"MatMul": 1, "Gemm": 0, "Conv": 0}
"""Operator → axis of the output channels in its weight: `(K, N)` for MatMul, `(N, K)` for Gemm with transB, `(N, C, h, w)`."""


def insert_qdq(proto: onnx.ModelProto, sites: Mapping[str, QuantizedSite]) -> onnx.ModelProto:
    """Return the graph with a Q/DQ pair at the input, a DQ at the weight and, where a site has one, a pair at the output.

    Args:
        proto: from `export_float`; its nodes carry the names of their layers in `doc_string`.
        sites: layer name → integers and scales.

    Raises: ExportError: if a site has no product in the graph, or its weight is not where it is expected.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    weights = {initializer.name: initializer for initializer in graph.initializer}
    # A layer's last node that computes: it may lay out its result anew after that.
    last = {node.doc_string: index for index, node in enumerate(graph.node) if node.op_type in (*_PRODUCTS, "Add")}
    pending = dict(sites)
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        name = node.doc_string
        if name in pending and node.op_type in _PRODUCTS:
            nodes += _quantize_product(graph, node, name, pending.pop(name), weights)
        nodes.append(node)
        # The product of a linear layer may be followed by the sum with its bias, which is the layer's last node.
        if name in sites and index == last[name]:
            nodes += _finish_layer(graph, node, sites[name], weights)
    if pending:
        raise ExportError(f"the exported graph has no product for the quantized layers {', '.join(sorted(pending))}.")
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return result


def _quantize_product(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    name: str,
    site: QuantizedSite,
    weights: Mapping[str, onnx.TensorProto],
) -> list[onnx.NodeProto]:
    activation, weight = node.input[0], node.input[1]
    integers = site.weight
    if node.op_type == "Conv" and integers.ndim == 2:  # a linear layer that is exported as a 1×1 convolution
        integers = integers[:, :, None, None]
    elif node.op_type == "MatMul":  # the exporter stores the weight of a linear layer transposed
        integers = (patch_rows(site.weight) if site.weight.ndim == 4 else site.weight).T
    found = tuple(weights[weight].dims) if weight in weights else None
    if found != integers.shape:
        raise ExportError(f"the weight of '{name}' has shape {found} in the graph, expected {integers.shape}.")
    node.input[0], node.input[1] = f"{name}.input_dequantized", f"{name}.weight_dequantized"
    scale = np.asarray(site.weight_scale / site.output_steps, np.float32)
    parts = [
        _initializer(graph, f"{name}.weight_quantized", integers),
        _initializer(graph, f"{name}.weight_scale", scale),
        _initializer(graph, f"{name}.weight_zero_point", np.zeros_like(scale, np.int8)),
    ]
    axis = _PRODUCTS[node.op_type] if scale.ndim else None
    dequantize = helper.make_node("DequantizeLinear", parts, [node.input[1]], f"{name}.weight_dq", name, axis=axis)
    shifted = []
    if site.input.shift is not None:
        shift = _initializer(graph, f"{name}.input_shift", site.input.shift)
        sum_name = f"{name}.input_shifted"
        shifted = [helper.make_node("Add", [activation, shift], [sum_name], f"{sum_name}_add", name)]
        activation = sum_name
    return [*shifted, *_pair(graph, f"{name}.input", activation, node.input[0], site.input), dequantize]


def _finish_layer(
    graph: onnx.GraphProto, node: onnx.NodeProto, site: QuantizedSite, weights: Mapping[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    name, added = node.doc_string, []
    if site.bias is not None:
        bias = (site.bias / site.output_steps).astype(np.float32)
        place = _bias_place(node, weights)
        stored = None if place is None else node.input[place]
        if stored is not None and tuple(weights[stored].dims) != bias.shape:
            raise ExportError(f"the bias of '{name}' has shape {tuple(weights[stored].dims)}, expected {bias.shape}.")
        new = _initializer(graph, f"{name}.bias_rounded", bias)
        if place is not None:
            node.input[place] = new
        elif node.op_type in ("Conv", "Gemm"):  # the exporter leaves out a bias of zeros
            node.input.append(new)
        else:
            result, node.output[0] = node.output[0], f"{name}.product"
            node = helper.make_node("Add", [node.output[0], new], [result], f"{name}.bias_add", doc_string=name)
            added = [node]
    if site.output is None:
        return added
    output, node.output[0] = node.output[0], f"{name}.output"
    if site.output.scale.ndim:
        return [*added, *_output_by_channel(graph, node, site.output, output)]
    return [*added, *_pair(graph, f"{name}.output", node.output[0], output, site.output)]


def _bias_place(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> int | None:
    """Return which input of a layer's last node is its bias; None where it has none."""
    if node.op_type in ("Conv", "Gemm"):
        return 2 if len(node.input) > 2 else None
    return next((place for place, name in enumerate(node.input) if name in weights), None)


def _output_by_channel(
    graph: onnx.GraphProto, node: onnx.NodeProto, grid: ActivationGrid, output: str
) -> list[onnx.NodeProto]:
    """Return a pair with scale 1, because the layer's result is divided by its scales already, and the product with them.

    A runtime that fuses QuantizeLinear into its integer product takes one scale there; and a product by channel is faster than a
    DequantizeLinear by channel. `_quantize_product` and `_finish_layer` divided weight scales and bias.
    """
    name = node.doc_string
    steps = grid.scale.reshape(-1, 1, 1) if node.op_type == "Conv" else grid.scale
    one = ActivationGrid(np.array(1.0, np.float32), grid.zero_point[0])
    return [
        *_pair(graph, f"{name}.output", node.output[0], f"{name}.output_steps", one),
        helper.make_node(
            "Mul",
            [f"{name}.output_steps", _initializer(graph, f"{name}.output_channel_scale", steps)],
            [output],
            f"{name}.output_mul",
            name,
        ),
    ]


def _pair(graph: onnx.GraphProto, place: str, source: str, result: str, grid: ActivationGrid) -> list[onnx.NodeProto]:
    # The type of the zero point is the type of the integers.
    qparams = [
        _initializer(graph, f"{place}_scale", grid.scale),
        _initializer(graph, f"{place}_zero_point", grid.zero_point),
    ]
    integers, layer = f"{place}_quantized", place.rpartition(".")[0]
    return [
        helper.make_node("QuantizeLinear", [source, *qparams], [integers], f"{place}_q", layer),
        helper.make_node("DequantizeLinear", [integers, *qparams], [result], f"{place}_dq", layer),
    ]


def _initializer(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    # np.array and not np.ascontiguousarray, which would make the scalars 1-D: TensorRT-RTX then computes a convolution in float
    graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), name))
    return name


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
