"""INT8 matrix products of ONNX Runtime in its own operator, which adds the bias as well.

From Q/DQ pairs ONNX Runtime makes the same operator, but leaves the bias beside it: it joins the bias of a first linear layer with
its GELU before, into an operator whose kernel is slower than that of GELU alone, and the bias of a second one is another pass
over its result.
"""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import helper

DOMAIN, VERSION = "com.microsoft", 1
OPERATOR = "MatMulIntegerToFloat"


def fuse_products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with each MatMul of two dequantized inputs, and the bias after it, as one `MatMulIntegerToFloat`.

    The file is then for ONNX Runtime alone: the operator is one of its own, `com.microsoft` version 1, for 8-bit integers with a
    scale per tensor and, for the weight `(K, N)`, one for each of the N output channels.

    Args:
        proto: from `insert_qdq`. Products whose inputs are not both dequantized stay as they are, as convolutions do.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {initializer.name for initializer in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    following = {name: node for node in graph.node for name in node.input}
    nodes: list[onnx.NodeProto] = []
    absorbed: set[str] = set()  # outputs of sums that a product has taken in
    for node in graph.node:
        inputs = [p for name in node.input if (p := producers.get(name)) and p.op_type == "DequantizeLinear"]
        if node.op_type == "MatMul" and len(inputs) == 2:
            product = node.output[0]
            after = following.get(product) if readers[product] == 1 else None
            bias = _bias(after, product, constants)
            if bias and after is not None:
                product = after.output[0]
                absorbed.add(product)
            nodes.append(_integer_product(node, inputs[0], inputs[1], bias, product))
        elif not absorbed.intersection(node.output):
            nodes.append(node)
    if not any(node.domain == DOMAIN for node in nodes):
        return result
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes if node.op_type != "DequantizeLinear" or used.intersection(node.output)]
    used = {name for node in kept for name in node.input}
    initializers = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    result.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return result


def _bias(node: onnx.NodeProto | None, product: str, constants: set[str]) -> str:
    """Return the constant that a node adds to a product; empty if it does something else."""
    if node is None or node.op_type != "Add":
        return ""
    other = node.input[1] if node.input[0] == product else node.input[0]
    return other if other in constants else ""


def _integer_product(
    node: onnx.NodeProto, activation: onnx.NodeProto, weight: onnx.NodeProto, bias: str, output: str
) -> onnx.NodeProto:
    (a, a_scale, a_zero_point), (b, b_scale, b_zero_point) = activation.input, weight.input
    inputs = [a, b, a_scale, b_scale, a_zero_point, b_zero_point, *([bias] if bias else [])]
    return helper.make_node(OPERATOR, inputs, [output], node.name, node.doc_string, domain=DOMAIN)
