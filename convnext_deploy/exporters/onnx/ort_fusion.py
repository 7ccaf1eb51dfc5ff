"""Fuse INT8 matrix products and their biases into the operator that ONNX Runtime has for them.

From Q/DQ pairs ONNX Runtime makes the same operator, but leaves the bias beside it: it joins the bias of a first linear layer with
its GELU before, into an operator whose kernel is slower than that of GELU alone, and the bias of a second one is another pass
over its result.
"""

import onnx
import onnx_ir as ir

from convnext_deploy.exporters.onnx.graph_edits import finish

DOMAIN, VERSION = "com.microsoft", 1
OPERATOR = "MatMulIntegerToFloat"


def fuse_int8_matmuls(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with each MatMul of two dequantized inputs, and the bias after it, as one `MatMulIntegerToFloat`.

    The file is then for ONNX Runtime alone: the operator is one of its own, `com.microsoft` version 1, for 8-bit integers with a
    scale per tensor and, for the weight `(K, N)`, one for each of the N output channels.

    Args:
        proto: from `insert_qdq`. A MatMul whose inputs are not both dequantized stays as it is, and so does every convolution.
    """
    model = ir.from_proto(proto)
    graph = model.graph
    for node in graph:
        inputs = [value.producer() for value in node.inputs if value is not None]
        pairs = [pair.inputs for pair in inputs if pair is not None and pair.op_type == "DequantizeLinear"]
        if node.op_type != "MatMul" or len(pairs) != 2:
            continue
        (a, a_scale, a_zero_point), (b, b_scale, b_zero_point) = pairs
        bias = _find_bias(node)
        operands = [a, b, a_scale, b_scale, a_zero_point, b_zero_point, *([] if bias is None else [bias[1]])]
        fused = ir.node(OPERATOR, operands, domain=DOMAIN, name=node.name, doc_string=node.doc_string)
        replaced = [node] if bias is None else [node, bias[0]]
        ir.convenience.replace_nodes_and_values(graph, node, replaced, [fused], replaced[-1].outputs, fused.outputs)
        graph.opset_imports[DOMAIN] = VERSION
    return finish(model) if DOMAIN in graph.opset_imports else proto


def _find_bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the node that alone reads the result of a MatMul, and the constant that it adds; None if it does something else."""
    result = node.outputs[0]
    if result.is_graph_output() or len(result.uses()) != 1:
        return None
    (add,) = result.consumers()
    constants = [value for value in add.inputs if value is not None and value.is_initializer()]
    return (add, constants[0]) if add.op_type == "Add" and constants else None
