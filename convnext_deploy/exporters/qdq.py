"""Explicit quantization: rewrite a float ONNX graph so that it says which products run in INT8, as TensorRT 10 and 11 read it.

The rules are those of TensorRT's explicit quantization: both inputs of a quantized product come from DequantizeLinear,
weights are int8 initializers with a scale per output channel, activations have one scale, biases stay in float.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convnext_deploy.errors import ExportError
from convnext_deploy.quantization.prepare import QuantizedSite

_PRODUCTS = {"MatMul": 1, "Gemm": 0, "Conv": 0}
"""Operator → axis of the output channels in its weight: `(K, N)` for MatMul, `(N, K)` for Gemm with transB, `(N, C, h, w)`."""


def insert_qdq(proto: onnx.ModelProto, sites: Mapping[str, QuantizedSite]) -> onnx.ModelProto:
    """Return the graph with Q/DQ pairs at the input and a DQ at the weight of every site.

    Args:
        proto: from `export_float`; its nodes carry the names of their layers in `doc_string`.
        sites: layer name → integers and scales.

    Raises: ExportError: if a site has no product in the graph, or its weight is not where it is expected.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    weights = {initializer.name: initializer for initializer in graph.initializer}
    pending = dict(sites)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        site = pending.pop(node.doc_string, None) if node.op_type in _PRODUCTS else None
        if site is not None:
            nodes += _quantize_product(graph, node, node.doc_string, site, weights)
        nodes.append(node)
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
    # The exporter stores a linear layer's weight transposed, as MatMul wants it.
    integers = site.weight.T if node.op_type == "MatMul" else site.weight
    found = tuple(weights[weight].dims) if weight in weights else None
    if found != integers.shape:
        raise ExportError(f"the weight of '{name}' has shape {found} in the graph, expected {integers.shape}.")

    # np.array and not np.ascontiguousarray, which would make the scalars 1-D: TensorRT-RTX then computes a convolution in float
    def initializer(suffix: str, values: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), f"{name}.{suffix}"))
        return f"{name}.{suffix}"

    x_scale, x_zero = (
        initializer("input_scale", site.input_scale),
        initializer("input_zero_point", site.input_zero_point),
    )
    quantized_weight = initializer("weight_quantized", integers)
    w_scale = initializer("weight_scale", site.weight_scale)
    w_zero = initializer("weight_zero_point", np.zeros_like(site.weight_scale, np.int8))
    axis = _PRODUCTS[node.op_type] if site.weight_scale.ndim else None
    node.input[0], node.input[1] = f"{name}.input_dequantized", f"{name}.weight_dequantized"
    return [
        helper.make_node(
            "QuantizeLinear", [activation, x_scale, x_zero], [f"{name}.input_quantized"], f"{name}.input_q"
        ),
        helper.make_node(
            "DequantizeLinear", [f"{name}.input_quantized", x_scale, x_zero], [node.input[0]], f"{name}.input_dq"
        ),
        helper.make_node(
            "DequantizeLinear", [quantized_weight, w_scale, w_zero], [node.input[1]], f"{name}.weight_dq", axis=axis
        ),
    ]


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
