"""Rules for the quantized MatMul, Gemm and Conv nodes, and for where pairs of QuantizeLinear and DequantizeLinear stand."""

from collections.abc import Iterator

import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import COMPUTE_OPERATORS, AnalyzedGraph, ComputeNode, Grid, readers_of_result
from convnext_deploy.graphs.lint.rule import QUANTIZE, Place, Rule, note, warning
from convnext_deploy.graphs.onnx_view import LAYOUT, PAIR, GraphView, attribute, inputs_of, origin, readers, shape_of

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
        wrong = grid.per_channel and grid.axis is not None and shape_of(node.weight) and grid.axis != node.channel_axis
        if wrong or attribute(grid.dequantize, "block_size", 0):
            yield node


@warning(
    "one scale for all output channels costs accuracy, most where their weights differ in size",
    f"{QUANTIZE}, or quantize_static with per_channel=True",
)
def weight_scale_per_tensor(graph: AnalyzedGraph) -> Iterator[Place]:
    """INT8 nodes with one scale for all output channels."""
    for node, grid in _weights(graph):
        shape = shape_of(node.weight)
        channels = shape[node.channel_axis] if shape else None
        if grid.scale is not None and not grid.per_channel and isinstance(channels, int) and channels > 1:
            yield node


@warning(
    "TensorRT takes one scale, a scalar, for an activation; else it computes the layer in float without a word",
    f"{QUANTIZE}, which gives each activation one scalar scale",
)
def activation_scale_per_channel(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes whose activation has a list of scales; for a convolution, also a list of one."""
    for node in graph.compute_nodes:
        scale = node.activation_grid.scale if node.activation_grid is not None else None
        if scale is not None and (scale.size > 1 or (scale.ndim and node.node.op_type == "Conv")):
            yield node


@warning(
    "the weight is made float again in every run: a smaller file and no faster layer",
    f"quantize the layer's input as well: {QUANTIZE}, or leave the layer float",
)
def weight_only(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes with an INT8 weight and a float activation."""
    for node in graph.compute_nodes:
        if node.weight_grid is not None and node.weight is not None and node.activation_grid is None:
            yield node


@warning(
    "with a float weight the layer computes in float, and the pair at its input only rounds",
    f"quantize the layer's weight as well: {QUANTIZE}, or leave the layer float",
)
def activation_only(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes with an INT8 activation and a float weight."""
    return (n for n in graph.compute_nodes if n.activation_grid is not None and n.weight_grid is None)


@warning(
    "TensorRT-RTX pads every channel to four, and standard TensorRT is often slower than with FP16",
    "leave depthwise convolutions float, as 'convnext-deploy quantize --target tensorrt' does; with "
    "quantize_static: nodes_to_exclude",
)
def int8_depthwise(graph: AnalyzedGraph) -> Iterator[Place]:
    """INT8 convolutions with one input channel a group."""
    return (node for node in graph.quantized_nodes if node.is_depthwise and node.quantized_type == "INT8")


@warning(
    "TensorRT-RTX 1.7 keeps the sums of such a node in FP16 before it scales them: beyond 65504 they are infinite",
    "for that runtime let the pairs and the node be FP32 between casts: "
    "'convnext-deploy export --precision fp16 --runtime tensorrt-rtx'",
)
def fp16_result_of_int8(graph: AnalyzedGraph) -> Iterator[Place]:
    """INT8 and FP8 matrix products with a scale per channel and an FP16 result."""
    for node, grid in _weights(graph):
        half = node.node.outputs[0].dtype == ir.DataType.FLOAT16
        if node.node.op_type in ("MatMul", "Gemm") and grid.per_channel and half:
            yield node


@note(
    "the file is up to four times as large as with integers, and each runtime rounds by itself",
    'store integers and DequantizeLinear: quantize_static with extra_options={"AddQDQPairToWeight": False}, or '
    "'convnext-deploy export'",
)
def weight_kept_as_float(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes that quantize their weight anew from a float one in the file."""
    for node in graph.compute_nodes:
        if node.weight_grid is not None and node.weight is not None and node.weight_grid.quantize is not None:
            yield node


@warning(
    "rounding between a layer and its GELU stops TensorRT from fusing them and costs accuracy",
    'no pairs on the outputs: quantize_static with extra_options={"OpTypesToExcludeOutputQuantization": '
    '["Conv", "MatMul", "Gemm", "Add"]}, or \'convnext-deploy quantize --target tensorrt\'',
)
def pair_before_activation(graph: AnalyzedGraph) -> Iterator[Place]:
    """MatMul, Gemm and Conv nodes whose result is quantized before their activation function."""
    for node in graph.compute_nodes:
        if any(_reaches_activation(graph.view, reader) for reader in _dequantized_results(graph.view, node.node)):
            yield node


@warning(
    "norms, GELU and GRN compute in float anyway: the pairs round and break fusions; before a norm after an INT8 convolution "
    "they may bring a faster kernel, and cost accuracy",
    f'{QUANTIZE}, or quantize_static with op_types_to_quantize=["Conv", "MatMul", "Gemm"]',
)
def pair_before_float_operator(graph: AnalyzedGraph) -> Iterator[Place]:
    """What computes in float and reads dequantized values: norms, GELU, GRN, scaling."""
    for node in graph.view.nodes:
        if node.op_type not in _MOVING and any(map(_is_dequantized, inputs_of(node))):
            yield node


@warning(
    "the residual stream is rounded in every block, and TensorRT gains nothing from it in a ConvNeXt",
    "leave sums float: 'convnext-deploy quantize --target tensorrt', or quantize_static with op_types_to_quantize=[\"Conv\", "
    '"MatMul", "Gemm"] and nodes_to_exclude for depthwise convolutions, whose rounded input the sum reads as well',
)
def quantized_sum(graph: AnalyzedGraph) -> Iterator[Place]:
    """Sums of two activations, as at the end of a block, with pairs before both or one of them."""
    for node in graph.view.of_type("Add"):
        activations = not any(map(graph.view.is_constant, node.inputs))
        if activations and any(map(_is_dequantized, inputs_of(node))):
            yield node


def _weights(graph: AnalyzedGraph) -> Iterator[tuple[ComputeNode, Grid]]:
    for node in graph.quantized_nodes:
        # a weight on the left of a matrix product has its channels elsewhere; no exporter writes one
        if node.weight_grid is not None and node.weight is node.node.inputs[1]:
            yield node, node.weight_grid


def _dequantized_results(view: GraphView, node: ir.Node) -> Iterator[ir.Node]:
    for quantize in readers_of_result(view, node):
        if quantize.op_type == "QuantizeLinear":
            for dequantize in readers(quantize.outputs[0], LAYOUT):
                if dequantize.op_type == "DequantizeLinear":
                    yield from readers(dequantize.outputs[0], LAYOUT)


def _reaches_activation(view: GraphView, node: ir.Node) -> bool:
    if node.op_type in _ACTIVATIONS:
        return True
    with_constant = any(map(view.is_constant, node.inputs))
    if node.op_type == "Add" and with_constant:
        return any(_reaches_activation(view, reader) for reader in readers(node.outputs[0], LAYOUT | PAIR))
    # an error function after division by the square root of two is a GELU in pieces
    scaled = node.op_type in ("Div", "Mul") and with_constant
    return scaled and any(reader.op_type == "Erf" for reader in readers(node.outputs[0], LAYOUT | PAIR))


def _is_dequantized(value: ir.Value) -> bool:
    node = origin(value, LAYOUT).producer()
    return node is not None and node.op_type == "DequantizeLinear"


LAYER_RULES: tuple[Rule, ...] = (
    weight_axis, weight_scale_per_tensor, activation_scale_per_channel, weight_only, activation_only, int8_depthwise,
    fp16_result_of_int8, weight_kept_as_float, pair_before_activation, pair_before_float_operator, quantized_sum,
)  # fmt: skip
