"""Rules for where a quantized graph has its pairs of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import COMPUTE_OPERATORS, AnalyzedGraph, node_label, readers_of_result
from convnext_deploy.graphs.lint.rule import QUANTIZE, Rule
from convnext_deploy.graphs.onnx_view import LAYOUT, PAIR, GraphView, inputs_of, origin, readers

_ACTIVATIONS = ("Gelu", "FastGelu", "BiasGelu", "Erf", "Relu", "Tanh", "Sigmoid")


def pairs_before_activations(graph: AnalyzedGraph) -> Iterator[str]:
    """MatMul, Gemm and Conv nodes whose result is quantized before their activation function."""
    for node in graph.compute_nodes:
        if any(_reaches_activation(graph.view, reader) for reader in _dequantized_results(graph.view, node.node)):
            yield node.layer


def pairs_before_float_operators(graph: AnalyzedGraph) -> Iterator[str]:
    """What computes in float and reads dequantized values: norms, GELU, GRN, scaling."""
    for node in graph.view.nodes:
        float_operator = node.op_type not in (
            *COMPUTE_OPERATORS,
            *PAIR,
            *LAYOUT,
            "Add",
            "Clip",
            "Cast",
            "Shape",
            "Size",
        )
        if float_operator and any(map(_is_dequantized, inputs_of(node))):
            yield node_label(node)


def quantized_sums(graph: AnalyzedGraph) -> Iterator[str]:
    """Sums of two activations, as at the end of a block, with pairs before both or one of them."""
    for node in graph.view.of_type("Add"):
        activations = not any(map(graph.view.is_constant, node.inputs))
        if activations and any(map(_is_dequantized, inputs_of(node))):
            yield node_label(node)


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


PLACEMENT_RULES: tuple[Rule, ...] = (
    Rule(
        "pair-before-activation",
        "warning",
        pairs_before_activations,
        "rounding between a layer and its GELU stops TensorRT from fusing them and costs accuracy",
        'no pairs on the outputs: quantize_static with extra_options={"OpTypesToExcludeOutputQuantization": '
        '["Conv", "MatMul", "Gemm", "Add"]}, or \'convnext-deploy quantize --target tensorrt\'',
    ),
    Rule(
        "pair-before-float-operator",
        "warning",
        pairs_before_float_operators,
        "norms, GELU and GRN compute in float anyway: the pairs round and break fusions; before a norm after an INT8 convolution "
        "they may bring a faster kernel, and cost accuracy",
        f'{QUANTIZE}, or quantize_static with op_types_to_quantize=["Conv", "MatMul", "Gemm"]',
    ),
    Rule(
        "quantized-sum",
        "warning",
        quantized_sums,
        "the residual stream is rounded in every block, and TensorRT gains nothing from it in a ConvNeXt",
        "leave sums float: 'convnext-deploy quantize --target tensorrt', or quantize_static with op_types_to_quantize=[\"Conv\", "
        '"MatMul", "Gemm"] and nodes_to_exclude for depthwise convolutions, whose rounded input the sum reads as well',
    ),
)
