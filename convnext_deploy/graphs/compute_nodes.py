"""The MatMul, Gemm and Conv nodes of an ONNX graph, and how each of them is quantized."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from convnext_deploy.graphs.onnx_view import (
    LAYOUT,
    PAIR,
    GraphView,
    array,
    attribute,
    origin,
    readers,
    shape_of,
    type_name,
    type_of,
)

COMPUTE_OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
_PASSING = LAYOUT | {"Cast"}
_PARAMETER = re.compile(r"^(.+?)\.(?:weight|bias|gamma|beta)(?:_\w+)?$")
_OPERATOR_PLACE = re.compile(r"^/?(.+)/\w+$")


@dataclass(frozen=True)
class Grid:
    """The integers, or 8-bit floats, that an input of a node was dequantized from.

    `scale` and `zero_point` are None where the graph computes them, `zero_point` also where it is left out. `axis` counts in the
    node's own input, after what lies between; None for one scale, and where a reshape hides it.
    """

    dequantize: ir.Node
    quantize: ir.Node | None
    integers: ir.Value
    scale: NDArray[Any] | None
    zero_point: NDArray[Any] | None
    axis: int | None

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale is not None and self.scale.size > 1


@dataclass(frozen=True)
class ComputeNode:
    """A MatMul, Gemm or Conv node. A grid is None where that input is float, `weight` where both inputs are activations."""

    node: ir.Node
    layer: str
    weight: ir.Value | None
    activation_grid: Grid | None
    weight_grid: Grid | None
    output_quantized: bool

    @property
    def quantized_type(self) -> str | None:
        """`INT8` where both inputs come from 8-bit integers, `FP8` where both come from 8-bit floats, else None."""
        grids = (self.activation_grid, self.weight_grid)
        types = {None if grid is None or grid.integers.dtype is None else grid.integers.dtype.name for grid in grids}
        if types <= {"INT8", "UINT8"}:
            return "INT8"
        return "FP8" if None not in types and all(name and name.startswith("FLOAT8") for name in types) else None

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution with one input channel a group."""
        shape = shape_of(self.weight)
        return (
            self.node.op_type == "Conv" and attribute(self.node, "group", 1) > 1 and len(shape) == 4 and shape[1] == 1
        )

    @property
    def channel_axis(self) -> int:
        """The axis of the output channels in the weight."""
        if self.node.op_type == "Gemm":
            return 0 if attribute(self.node, "transB", 0) else 1
        return {"Conv": 0, "ConvTranspose": 1}.get(self.node.op_type, len(shape_of(self.weight)) - 1)

    @property
    def precision(self) -> str:
        """The type it computes in: on 8 bits where both inputs are dequantized, else of its input."""
        source = self.node.inputs[0]
        assert source is not None  # every such node has two inputs
        return self.quantized_type or type_name(source if type_of(source) else self.node.outputs[0])


@dataclass(frozen=True)
class AnalyzedGraph:
    """A graph, and its MatMul, Gemm and Conv nodes in its order."""

    view: GraphView
    compute_nodes: tuple[ComputeNode, ...]

    @property
    def quantized_nodes(self) -> tuple[ComputeNode, ...]:
        """Those in INT8 or FP8."""
        return tuple(node for node in self.compute_nodes if node.quantized_type is not None)


def find_compute_nodes(view: GraphView) -> AnalyzedGraph:
    """Describe how the MatMul, Gemm and Conv nodes of a graph are quantized."""
    return AnalyzedGraph(view, tuple(_describe(view, node) for node in view.of_type(*COMPUTE_OPERATORS)))


def layer_name(view: GraphView, node: ir.Node) -> str:
    """Return the name of the layer a node belongs to: of its weight, of its bias, or the node's own.

    Exporters name the weights of convolutions and the biases of linear layers after their modules, and nodes by number.
    """
    following = [reader for value in node.outputs[:1] for reader in readers(value, PAIR) if reader.op_type == "Add"]
    for place in (node, *following) if node.op_type == "MatMul" else (node,):
        for weight in view.weights_of(place):
            if found := _PARAMETER.match(weight.name or ""):
                return found[1]
    if found := _OPERATOR_PLACE.match(node.name or ""):
        return found[1].replace("/", ".")
    named = next((weight.name for weight in view.weights_of(node) if shape_of(weight)), None)
    return node.name or named or node_label(node)


def node_label(node: ir.Node) -> str:
    """Return what a node is called: its name, or that of its result."""
    return node.name or next((value.name for value in node.outputs if value.name), node.op_type)


def trace_grid(value: ir.Value) -> Grid | None:
    """Return the grid that a value comes from, looking through what changes layout or float type; None if it is float."""
    passed: list[ir.Node] = []
    while (node := value.producer()) is not None and node.op_type in _PASSING and node.inputs[0] is not None:
        passed.append(node)
        value = node.inputs[0]
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, scale, zero_point = (*node.inputs, None)[:3]
    assert integers is not None
    assert scale is not None  # the operator has both
    source = origin(integers, LAYOUT | {"Clip"}).producer()
    quantize = source if source is not None and source.op_type == "QuantizeLinear" else None
    scales = array(scale)
    axis = _axis_after(node, passed) if scales is not None and scales.size > 1 else None
    return Grid(node, quantize, integers, scales, None if zero_point is None else array(zero_point), axis)


def readers_of_result(view: GraphView, node: ir.Node) -> Iterator[ir.Node]:
    """Yield what reads the result of a node: after the sum with its bias, in whatever layout and float type."""
    for reader in readers(node.outputs[0], _PASSING):
        if reader.op_type == "Add" and any(map(view.is_constant, reader.inputs)):
            yield from readers(reader.outputs[0], _PASSING)
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
        return "none" if len(grid.dequantize.inputs) < 3 else "computed"
    values = np.unique(grid.zero_point.astype(np.int64))
    return str(values[0]) if values.size == 1 else f"{values[0]} to {values[-1]}" if values.size else "none"


def _describe(view: GraphView, node: ir.Node) -> ComputeNode:
    activation, weight = node.inputs[:2]
    assert activation is not None
    assert weight is not None  # the operators have both
    # a matrix product may have its weight on either side
    if node.op_type == "MatMul" and view.is_constant(activation) and not view.is_constant(weight):
        activation, weight = weight, activation
    return ComputeNode(
        node,
        layer_name(view, node),
        weight if view.is_constant(weight) else None,
        trace_grid(activation),
        trace_grid(weight),
        any(reader.op_type == "QuantizeLinear" for reader in readers_of_result(view, node)),
    )


def _axis_after(dequantize: ir.Node, passed: list[ir.Node]) -> int | None:
    axis: int = attribute(dequantize, "axis", 1)
    if axis < 0:
        integers = dequantize.inputs[0]
        if integers is None or integers.shape is None:
            return None
        axis += len(integers.shape)
    for node in reversed(passed):
        if node.op_type in ("Identity", "Cast"):
            continue
        order = attribute(node, "perm") if node.op_type == "Transpose" else None
        if order is None:
            return None
        axis = list(order).index(axis)
    return axis
