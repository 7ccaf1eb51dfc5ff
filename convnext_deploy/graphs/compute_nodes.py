"""The MatMul, Gemm and Conv nodes of an ONNX graph, and how each of them is quantized."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from convnext_deploy.graphs.onnx_io import short_name
from convnext_deploy.graphs.onnx_view import INTEGERS, LAYOUT, PAIR, GraphView, attribute

COMPUTE_OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
_PASSING = LAYOUT | {"Cast"}
_PARAMETER = re.compile(r"^(.+?)\.(?:weight|bias|gamma|beta)(?:_\w+)?$")
_OPERATOR_PLACE = re.compile(r"^/?(.+)/\w+$")


@dataclass(frozen=True)
class Grid:
    """The integers that an input of a node was dequantized from.

    `scale` and `zero_point` are None where the graph computes them, `zero_point` also where it is left out. `axis` counts in the
    node's own input, after what lies between; None for one scale, and where a reshape hides it.
    """

    dequantize: onnx.NodeProto
    quantize: onnx.NodeProto | None
    integer: int
    scale: NDArray[Any] | None
    zero_point: NDArray[Any] | None
    axis: int | None

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale is not None and self.scale.size > 1


@dataclass(frozen=True)
class ComputeNode:
    """The MatMul, Gemm or Conv node `proto`. A grid is None where that input is float, `weight_name` where both are activations."""

    proto: onnx.NodeProto
    layer: str
    weight_name: str | None
    activation: Grid | None
    weight: Grid | None
    bias: Grid | None
    output_quantized: bool

    @property
    def is_int8(self) -> bool:
        """Whether both inputs come from 8-bit integers."""
        return all(grid is not None and grid.integer in INTEGERS for grid in (self.activation, self.weight))

    @property
    def group(self) -> int:
        """Groups of a convolution."""
        return int(attribute(self.proto, "group", 1))

    def is_depthwise(self, view: GraphView) -> bool:
        """Whether it is a convolution with one input channel a group."""
        shape = view.shapes.get(self.weight_name or "", ())
        return self.proto.op_type == "Conv" and self.group > 1 and len(shape) == 4 and shape[1] == 1

    def weight_axis(self, rank: int) -> int:
        """Return the axis of the output channels in a weight of so many dimensions."""
        if self.proto.op_type == "Gemm":
            return 0 if attribute(self.proto, "transB", 0) else 1
        return {"Conv": 0, "ConvTranspose": 1}.get(self.proto.op_type, rank - 1)


@dataclass(frozen=True)
class AnalyzedGraph:
    """A graph, and its MatMul, Gemm and Conv nodes in its order."""

    view: GraphView
    compute_nodes: tuple[ComputeNode, ...]

    @property
    def int8_nodes(self) -> tuple[ComputeNode, ...]:
        """Those with both inputs from 8-bit integers."""
        return tuple(node for node in self.compute_nodes if node.is_int8)


def find_compute_nodes(view: GraphView) -> AnalyzedGraph:
    """Describe how the MatMul, Gemm and Conv nodes of a graph are quantized."""
    return AnalyzedGraph(view, tuple(_describe(view, node) for node in view.of_type(*COMPUTE_OPERATORS)))


def layer_name(view: GraphView, node: onnx.NodeProto) -> str:
    """Return the name of the layer a node belongs to: of its weight, of its bias, or the node's own.

    Exporters name the weights of convolutions and the biases of linear layers after their modules, and nodes by number.
    """
    following = [reader for name in node.output[:1] for reader in view.readers(name, PAIR) if reader.op_type == "Add"]
    for place in (node, *following) if node.op_type == "MatMul" else (node,):
        for tensor in view.weights_of(place):
            if found := _PARAMETER.match(tensor.name):
                return found[1]
    if found := _OPERATOR_PLACE.match(node.name):
        return found[1].replace("/", ".")
    named = next((tensor.name for tensor in view.weights_of(node) if tensor.dims), "")
    return node.name or named or next(iter(node.output), node.op_type)


def trace_grid(view: GraphView, name: str) -> Grid | None:
    """Return the grid that a value comes from, looking through what changes layout or float type; None if it is float."""
    passed: list[onnx.NodeProto] = []
    while (node := view.producers.get(name)) is not None and node.op_type in _PASSING:
        passed.append(node)
        name = node.input[0]
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale = view.array(node.input[1])
    zero_point = view.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    integers = view.origin(node.input[0], LAYOUT | {"Clip"})
    source = view.producers.get(integers)
    quantize = source if source is not None and source.op_type == "QuantizeLinear" else None
    axis = _axis_after(view, node, passed) if scale is not None and scale.size > 1 else None
    return Grid(node, quantize, view.type_of(node.input[0]), scale, zero_point, axis)


def readers_of_result(view: GraphView, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield what reads the result of a node: after the sum with its bias, in whatever layout and float type."""
    for reader in view.readers(node.output[0], _PASSING):
        if reader.op_type == "Add" and any(view.is_constant(name) for name in reader.input):
            yield from view.readers(reader.output[0], _PASSING)
        else:
            yield reader


def granularity(grid: Grid) -> str:
    """Say in words over what the scales of a grid extend."""
    if grid.scale is None:
        return "computed at run time"
    if not grid.per_channel:
        return "per tensor"
    return "per channel" if grid.axis is None else f"per channel, axis {grid.axis}"


def describe_zero_point(grid: Grid) -> str:
    """Say in words where zero lies."""
    if grid.zero_point is None:
        return "none" if len(grid.dequantize.input) < 3 else "computed"
    values = np.unique(grid.zero_point.astype(np.int64))
    return str(values[0]) if values.size == 1 else f"{values[0]} to {values[-1]}" if values.size else "none"


def compute_precision(view: GraphView, node: ComputeNode) -> str:
    """Return the type a node computes in: of the integers where both inputs are dequantized, else of its input."""
    if node.is_int8:
        return "INT8"
    return short_name(view.type_of(node.proto.input[0]) or view.type_of(node.proto.output[0]))


def _describe(view: GraphView, node: onnx.NodeProto) -> ComputeNode:
    # a matrix product may have its weight on either side
    swapped = node.op_type == "MatMul" and view.is_constant(node.input[0]) and not view.is_constant(node.input[1])
    activation, weight = (node.input[1], node.input[0]) if swapped else (node.input[0], node.input[1])
    return ComputeNode(
        node,
        layer_name(view, node),
        weight if view.is_constant(weight) else None,
        trace_grid(view, activation),
        trace_grid(view, weight),
        trace_grid(view, node.input[2]) if len(node.input) > 2 and node.input[2] else None,
        any(reader.op_type == "QuantizeLinear" for reader in readers_of_result(view, node)),
    )


def _axis_after(view: GraphView, dequantize: onnx.NodeProto, passed: list[onnx.NodeProto]) -> int | None:
    axis: int = attribute(dequantize, "axis", 1)
    if axis < 0:
        shape = view.shapes.get(dequantize.input[0])
        if shape is None:
            return None
        axis += len(shape)
    for node in reversed(passed):
        if node.op_type in ("Identity", "Cast"):
            continue
        order = attribute(node, "perm") if node.op_type == "Transpose" else None
        if order is None:
            return None
        axis = list(order).index(axis)
    return axis
