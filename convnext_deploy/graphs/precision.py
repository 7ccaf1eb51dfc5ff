"""The precision of an ONNX file of another origin, told by what its MatMul, Gemm and Conv nodes compute with."""

import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import INTEGER_OPERATORS, ComputeNode, find_compute_nodes
from convnext_deploy.graphs.onnx_view import GraphView

_HALF = ir.DataType.FLOAT16
_FLOAT8 = "FLOAT8"


def read_precision(view: GraphView) -> str:
    """Return `int8`, `int16`, `fp8`, `fp16`, `bf16` or `fp32`; the integer and 8-bit ones with `-fp16` where the rest is FP16.

    A weight that is stored as integers and multiplied as floats counts for nothing: that node computes in float.
    """
    nodes = find_compute_nodes(view).compute_nodes
    kinds = {_integers(node) for node in nodes}
    if any(node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear") for node in view.nodes):
        kinds.add("int8")
    types = {value.dtype for node in nodes for value in node.node.outputs}
    half = _HALF in types
    for kind in ("int8", "int16", "fp8"):
        if kind in kinds:
            return f"{kind}-fp16" if half else kind
    return "fp16" if half else "bf16" if ir.DataType.BFLOAT16 in types else "fp32"


def _integers(node: ComputeNode) -> str:
    """Return what a node multiplies where both its inputs were dequantized; empty where one of them is float."""
    if node.activation_grid is None or node.weight_grid is None:
        return ""
    types = [grid.integers.dtype or ir.DataType.UNDEFINED for grid in (node.activation_grid, node.weight_grid)]
    if any(kind.name.startswith(_FLOAT8) for kind in types):
        return "fp8"
    return "int16" if any(kind.bitwidth > 8 for kind in types if kind) else "int8"
