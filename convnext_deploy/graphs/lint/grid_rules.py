"""Rules for the integers of a quantized graph: their types, zero points and scales."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from convnext_deploy.graphs.compute_nodes import INTEGER_OPERATORS, AnalyzedGraph, node_label
from convnext_deploy.graphs.lint.rule import QUANTIZE, SYMMETRIC, Place, Rule, error, note, warning
from convnext_deploy.graphs.onnx_view import LAYOUT, PAIR, array, attribute, inputs_of, origin, type_of

_ZERO_IN_FP16 = 2.0**-25  # what is not larger becomes 0
_WIDE = (ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32)
_FIRST_OPSET_OF_FP16_SCALES = 19


@error(
    "TensorRT has no QLinear, Integer or DynamicQuantizeLinear operators and refuses the file",
    f"{QUANTIZE}, or quantize_static with quant_format=QuantFormat.QDQ in place of QOperator or quantize_dynamic",
)
def integer_operators(graph: AnalyzedGraph) -> Iterator[Place]:
    """Operators that compute on integers themselves, or find scales at run time."""
    wanted = (*INTEGER_OPERATORS, "DynamicQuantizeLinear")
    return (node for node in graph.view.nodes if node.op_type in wanted or node.op_type.startswith("QLinear"))


@error("TensorRT takes symmetric integers alone and refuses the file", f"{QUANTIZE}, or {SYMMETRIC}")
def zero_point_not_zero(graph: AnalyzedGraph) -> Iterator[Place]:
    """Pairs whose zero is not the integer 0."""
    return (node for node, zero_point in _arrays(graph, 2) if zero_point.astype(np.int64).any())


@error(
    "TensorRT takes uint8 for int8 without a word: what is over 127 is cut off, and the results are wrong",
    f"{QUANTIZE}, or {SYMMETRIC} and activation_type=QuantType.QInt8",
)
def uint8(graph: AnalyzedGraph) -> Iterator[Place]:
    """Pairs on uint8 that say so."""
    for node in graph.view.of_type("QuantizeLinear"):
        if len(node.inputs) > 2 and _integer_type(node) == ir.DataType.UINT8:
            yield node
    yield from _stored(graph, ir.DataType.UINT8)


@error(
    "by the ONNX standard the integers are then uint8, TensorRT takes them for int8: the results differ",
    "give every QuantizeLinear a zero point of type int8, as 'convnext-deploy export' does",
)
def zero_point_missing(graph: AnalyzedGraph) -> Iterator[Place]:
    """QuantizeLinear that leaves open what type it makes."""
    for node in graph.view.of_type("QuantizeLinear"):
        if len(inputs_of(node)) < 3 and not attribute(node, "output_dtype", 0):
            yield node


@error(
    "TensorRT does not dequantize INT32 and refuses the file",
    "keep biases float: quantize_static with extra_options={\"QuantizeBias\": False}; 'convnext-deploy export' always does",
)
def bias_int32(graph: AnalyzedGraph) -> Iterator[Place]:
    """Biases stored as INT32 and dequantized."""
    return _stored(graph, ir.DataType.INT32)


@error(
    "TensorRT knows no quantization to 16 or 32 bits and refuses the file",
    f"{QUANTIZE}, or choose QuantType.QInt8 for weights and activations",
)
def wide_integers(graph: AnalyzedGraph) -> Iterator[Place]:
    """Pairs on 16 or 32 bits, other than biases."""
    biases = set(map(node_label, _stored(graph, ir.DataType.INT32)))
    for node in graph.view.of_type(*PAIR):
        if _integer_type(node) in _WIDE and node_label(node) not in biases:
            yield node


@warning(
    "8-bit floats need SM89 or later and 4 bits serve weights alone: not on Orin nor on RTX 30",
    f"{QUANTIZE} for INT8; for RTX 40, Thor and newer FP8 is right, which --target tensorrt-fp8 makes",
)
def types_of_newer_gpus(graph: AnalyzedGraph) -> Iterator[Place]:
    """Pairs on 4 bits or on 8-bit floats."""
    for node in graph.view.of_type(*PAIR):
        if _integer_type(node).name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4")):
            yield node


@error(
    "TensorRT refuses scales that are not above zero; a scale that FP16 takes for 0 is one of them",
    "calibrate again on images that reach every channel, and hold scales above 1e-6 before they become FP16",
)
def scale_not_positive(graph: AnalyzedGraph) -> Iterator[Place]:
    """Scales of zero, below it, or that are not a number."""
    for node, scale in _arrays(graph, 1):
        values = scale.astype(np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            yield node


@note(
    "converted to FP16 these scales become 0, which TensorRT refuses",
    "raise them to 1e-6 before the conversion; what so small a scale serves is zero anyway",
)
def scale_lost_in_fp16(graph: AnalyzedGraph) -> Iterator[Place]:
    """FP32 scales that FP16 takes for 0."""
    for node, scale in _arrays(graph, 1):
        if scale.dtype == np.float32 and ((scale > 0) & (scale <= _ZERO_IN_FP16)).any():
            yield node


@warning(
    "strongly typed engines ask for scales of the input's type, and FP16 scales are valid from opset 19 on",
    "write scales in the type of what they scale, at opset 20, as 'convnext-deploy export' does",
)
def scale_type(graph: AnalyzedGraph) -> Iterator[Place]:
    """QuantizeLinear whose scale has another type than its input; FP16 scales before the opset that has them."""
    early = graph.view.model.opset_imports.get("", 0) < _FIRST_OPSET_OF_FP16_SCALES
    for node in graph.view.of_type("QuantizeLinear"):
        source, scale = (type_of(value) for value in inputs_of(node)[:2])
        too_early = scale == ir.DataType.FLOAT16 and early and not node.domain
        if source and scale and (source != scale or too_early):
            yield node


@error(
    "TensorRT-RTX 1.7 crashes on a convolution with a scale found at run time, and computes a linear layer in float",
    f"{QUANTIZE}, or calibrate with quantize_static in place of quantize_dynamic",
)
def scale_computed(graph: AnalyzedGraph) -> Iterator[Place]:
    """Activations whose scale the graph computes."""
    return (node for node in graph.view.of_type("QuantizeLinear") if not graph.view.is_constant(node.inputs[1]))


def _arrays(graph: AnalyzedGraph, place: int) -> Iterator[tuple[ir.Node, NDArray[Any]]]:
    """Yield the pairs with their scales (1) or zero points (2), where these are in the file."""
    for node in graph.view.of_type(*PAIR):
        if len(inputs_of(node)) > place and (values := array(inputs_of(node)[place])) is not None:
            yield node, values


def _stored(graph: AnalyzedGraph, integer: ir.DataType) -> Iterator[ir.Node]:
    """Yield the DequantizeLinear nodes that read integers of a type from the file."""
    for node in graph.view.of_type("DequantizeLinear"):
        if graph.view.is_constant(node.inputs[0]) and _integer_type(node) == integer:
            yield node


def _integer_type(node: ir.Node) -> ir.DataType:
    value = node.outputs[0] if node.op_type == "QuantizeLinear" else inputs_of(node)[0]
    return type_of(value) or type_of(origin(value, LAYOUT))


GRID_RULES: tuple[Rule, ...] = (
    integer_operators, zero_point_not_zero, uint8, zero_point_missing, bias_int32, wide_integers, types_of_newer_gpus,
    scale_not_positive, scale_lost_in_fp16, scale_type, scale_computed,
)  # fmt: skip
