"""The precision of an ONNX file of another origin, told by what its MatMul, Gemm and Conv nodes compute with."""

import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import INTEGER_OPERATORS, ComputeNode, find_compute_nodes
from convnext_deploy.graphs.onnx_view import GraphView


def read_precision(view: GraphView) -> str:
    """Return `int8`, `int16`, `int4`, `fp8`, `fp16`, `bf16` or `fp32`; those of fewer bits with `-fp16` where the rest is FP16.

    A node with a quantized weight counts for the wider of weight and activation, also where the activation is float: `inspect` says
    that such nodes compute in float. Nodes of several kinds go by the first of these.
    """
    nodes = find_compute_nodes(view).compute_nodes
    kinds = {_integers(node) for node in nodes}
    if any(node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear") for node in view.nodes):
        kinds.add("int8")
    if any(True for _ in view.of_type("MatMulNBits")):
        kinds.add("int4")
    types = {value.dtype for node in [node.node for node in nodes] or view.nodes for value in node.outputs}
    half = ir.DataType.FLOAT16 in types
    for kind in ("int8", "int16", "int4", "fp8"):
        if kind in kinds:
            return f"{kind}-fp16" if half else kind
    return "fp16" if half else "bf16" if ir.DataType.BFLOAT16 in types else "fp32"


def _integers(node: ComputeNode) -> str:
    """Return on what a node is quantized: its weight, and its activation where that is wider; empty where its weight is float."""
    grids = [grid for grid in (node.weight_grid, node.activation_grid) if grid is not None]
    if node.weight_grid is None:
        return ""
    types = [grid.integers.dtype or ir.DataType.INT8 for grid in grids]
    if any(kind.name.startswith("FLOAT") for kind in types):
        return "fp8"
    bits = max(kind.bitwidth for kind in types)
    return "int4" if bits <= 4 else "int8" if bits <= 8 else "int16"
