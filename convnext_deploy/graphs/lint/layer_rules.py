"""Rules for the quantized MatMul, Gemm and Conv nodes, and for where pairs of QuantizeLinear and DequantizeLinear stand."""

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from convnext_deploy.graphs.compute_nodes import COMPUTE_OPERATORS, AnalyzedGraph, ComputeNode, Grid, readers_of_result
from convnext_deploy.graphs.lint.rule import QUANTIZE, Place, Rule, note, warning
from convnext_deploy.graphs.onnx_view import LAYOUT, PAIR, GraphView, attribute

_ACTIVATIONS = ("Gelu", "FastGelu", "BiasGelu", "Erf", "Relu", "Tanh", "Sigmoid")
_MOVING = (*COMPUTE_OPERATORS, *PAIR, *LAYOUT, "Add", "Clip", "Cast", "Shape", "Size")  # may read dequantized values


@warning(
    "TensorRT builds it and computes the layer in float without a word",
    "scales along the output channels: axis 0 of Conv and of Gemm with transB, axis 1 of MatMul (K, N); "
    "'convnext-deploy export' writes them so",
)
def weight_axis(graph: AnalyzedGraph) -> Iterator[Place]:
    """INT8 nodes whose weight has its scales along another axis than that of the output channels, or in blocks."""
    for node, grid in _weights(graph):
        rank = len(graph.view.shapes.get(node.weight_name or "", ()))
        wrong = grid.per_channel and grid.axis is not None and rank and grid.axis != node.weight_axis(rank)
        if wrong or attribute(grid.dequantize, "block_size", 0):
            yield node


@warning(
    "one scale for all output channels costs accuracy, most where their weights differ in size",
    f"{QUANTIZE}, or quantize_static with per_channel=True",
)
def weight_scale_per_tensor(graph: AnalyzedGraph) -> Iterator[Place]:
    """INT8 nodes with one scale for all output channels."""
    for node, grid in _weights(graph):
        if grid.scale is not None and not grid.per_channel and _output_channels(graph.view, node) > 1:
            yield node


@warning(
    "TensorRT takes one scale, a scalar, for an activation; else it computes the layer in float without a word",
    f"{QUANTIZE}, which gives each activation one scalar scale",
)
def activation_scale_per_channel(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes whose activation has a list of scales; for a convolution, also a list of one."""
    for node in graph.compute_nodes:
        scale = node.activation.scale if node.activation is not None else None
        if scale is not None and (scale.size > 1 or (scale.ndim and node.proto.op_type == "Conv")):
            yield node


@warning(
    "the weight is made float again in every run: a smaller file and no faster layer",
    f"quantize the layer's input as well: {QUANTIZE}, or leave the layer float",
)
def weight_only(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes with an INT8 weight and a float activation."""
    for node in graph.compute_nodes:
        if node.weight is not None and node.weight_name is not None and node.activation is None:
            yield node


@warning(
    "with a float weight the layer computes in float, and the pair at its input only rounds",
    f"quantize the layer's weight as well: {QUANTIZE}, or leave the layer float",
)
def activation_only(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes with an INT8 activation and a float weight."""
    return (node for node in graph.compute_nodes if node.activation is not None and node.weight is None)


@warning(
    "TensorRT-RTX pads every channel to four, and standard TensorRT is often slower than with FP16",
    "leave depthwise convolutions float, as 'convnext-deploy quantize --target tensorrt' does; with "
    "quantize_static: nodes_to_exclude",
)
def int8_depthwise(graph: AnalyzedGraph) -> Iterator[Place]:
    """INT8 convolutions with one input channel a group."""
    return (node for node in graph.int8_nodes if node.is_depthwise(graph.view))


@warning(
    "TensorRT-RTX 1.7 keeps the integer sums of such a node in FP16 before it scales them: beyond 65504 they are "
    "infinite",
    "for that runtime let the pairs and the node be FP32 between casts: "
    "'convnext-deploy export --precision fp16 --runtime tensorrt-rtx'",
)
def fp16_result_of_int8(graph: AnalyzedGraph) -> Iterator[Place]:
    """INT8 matrix products with a scale per channel and an FP16 result."""
    for node, grid in _weights(graph):
        half = graph.view.type_of(node.proto.output[0]) == TensorProto.FLOAT16
        if node.proto.op_type in ("MatMul", "Gemm") and grid.per_channel and half:
            yield node


@note(
    "the file is up to four times as large as with integers, and each runtime rounds by itself",
    'store integers and DequantizeLinear: quantize_static with extra_options={"AddQDQPairToWeight": False}, or '
    "'convnext-deploy export'",
)
def weight_kept_as_float(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes that quantize their weight anew from a float one in the file."""
    for node in graph.compute_nodes:
        if node.weight is not None and node.weight_name is not None and node.weight.quantize is not None:
            yield node


@warning(
    "rounding between a layer and its GELU stops TensorRT from fusing them and costs accuracy",
    'no pairs on the outputs: quantize_static with extra_options={"OpTypesToExcludeOutputQuantization": '
    '["Conv", "MatMul", "Gemm", "Add"]}, or \'convnext-deploy quantize --target tensorrt\'',
)
def pair_before_activation(graph: AnalyzedGraph) -> Iterator[Place]:
    """MatMul, Gemm and Conv nodes whose result is quantized before their activation function."""
    view = graph.view
    for node in graph.compute_nodes:
        if any(_reaches_activation(view, reader) for reader in _dequantized_results(view, node.proto)):
            yield node


@warning(
    "norms, GELU and GRN compute in float anyway: the pairs round and break fusions; before a norm after an INT8 convolution "
    "they may bring a faster kernel, and cost accuracy",
    f'{QUANTIZE}, or quantize_static with op_types_to_quantize=["Conv", "MatMul", "Gemm"]',
)
def pair_before_float_operator(graph: AnalyzedGraph) -> Iterator[Place]:
    """What computes in float and reads dequantized values: norms, GELU, GRN, scaling."""
    view = graph.view
    for node in view.nodes:
        if node.op_type not in _MOVING and any(_is_dequantized(view, name) for name in node.input):
            yield node


@warning(
    "the residual stream is rounded in every block, and TensorRT gains nothing from it in a ConvNeXt",
    "leave sums float: 'convnext-deploy quantize --target tensorrt', or quantize_static with op_types_to_quantize=[\"Conv\", "
    '"MatMul", "Gemm"] and nodes_to_exclude for depthwise convolutions, whose rounded input the sum reads as well',
)
def quantized_sum(graph: AnalyzedGraph) -> Iterator[Place]:
    """Sums of two activations, as at the end of a block, with pairs before both or one of them."""
    view = graph.view
    for node in view.of_type("Add"):
        activations = not any(view.is_constant(name) for name in node.input)
        if activations and any(_is_dequantized(view, name) for name in node.input):
            yield node


def _weights(graph: AnalyzedGraph) -> Iterator[tuple[ComputeNode, Grid]]:
    for node in graph.int8_nodes:
        # a weight on the left of a matrix product has its channels elsewhere; no exporter writes one
        if node.weight is not None and node.weight_name == node.proto.input[1]:
            yield node, node.weight


def _output_channels(view: GraphView, node: ComputeNode) -> int:
    shape = view.shapes.get(node.weight_name or "", ())
    size = shape[node.weight_axis(len(shape))] if shape else None
    return size if isinstance(size, int) else 1


def _dequantized_results(view: GraphView, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    for quantize in readers_of_result(view, node):
        if quantize.op_type == "QuantizeLinear":
            for dequantize in view.readers(quantize.output[0], LAYOUT):
                if dequantize.op_type == "DequantizeLinear":
                    yield from view.readers(dequantize.output[0], LAYOUT)


def _reaches_activation(view: GraphView, node: onnx.NodeProto) -> bool:
    if node.op_type in _ACTIVATIONS:
        return True
    if node.op_type == "Add" and any(view.is_constant(name) for name in node.input):
        return any(_reaches_activation(view, reader) for reader in view.readers(node.output[0], LAYOUT | PAIR))
    # an error function after division by the square root of two is a GELU in pieces
    scaled = node.op_type in ("Div", "Mul") and any(view.is_constant(name) for name in node.input)
    return scaled and any(reader.op_type == "Erf" for reader in view.readers(node.output[0], LAYOUT | PAIR))


def _is_dequantized(view: GraphView, name: str) -> bool:
    node = view.producers.get(view.origin(name, LAYOUT))
    return node is not None and node.op_type == "DequantizeLinear"


LAYER_RULES: tuple[Rule, ...] = (
    weight_axis, weight_scale_per_tensor, activation_scale_per_channel, weight_only, activation_only, int8_depthwise,
    fp16_result_of_int8, weight_kept_as_float, pair_before_activation, pair_before_float_operator, quantized_sum,
)  # fmt: skip
