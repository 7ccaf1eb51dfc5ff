"""Rules for the quantized MatMul, Gemm and Conv nodes: their activations and weights, and what gains nothing."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph, ComputeNode, Grid
from convnext_deploy.graphs.lint.rule import QUANTIZE, Rule
from convnext_deploy.graphs.onnx_view import attribute, shape_of


def weight_scales_on_another_axis(graph: AnalyzedGraph) -> Iterator[str]:
    """INT8 nodes whose weight has its scales along another axis than that of the output channels, or in blocks."""
    for node, grid in _weights(graph):
        wrong = grid.per_channel and grid.axis is not None and shape_of(node.weight) and grid.axis != node.channel_axis
        if wrong or attribute(grid.dequantize, "block_size", 0):
            yield node.layer


def weight_scales_per_tensor(graph: AnalyzedGraph) -> Iterator[str]:
    """INT8 nodes with one scale for all output channels."""
    for node, grid in _weights(graph):
        shape = shape_of(node.weight)
        channels = shape[node.channel_axis] if shape else None
        if grid.scale is not None and not grid.per_channel and isinstance(channels, int) and channels > 1:
            yield node.layer


def activation_scales_per_channel(graph: AnalyzedGraph) -> Iterator[str]:
    """Nodes whose activation has a list of scales; for a convolution, also a list of one."""
    for node in graph.compute_nodes:
        scale = node.activation_grid.scale if node.activation_grid is not None else None
        if scale is not None and (scale.size > 1 or (scale.ndim and node.node.op_type == "Conv")):
            yield node.layer


def weight_only_nodes(graph: AnalyzedGraph) -> Iterator[str]:
    """Nodes with an INT8 weight and a float activation."""
    for node in graph.compute_nodes:
        if node.weight_grid is not None and node.weight is not None and node.activation_grid is None:
            yield node.layer


def activation_only_nodes(graph: AnalyzedGraph) -> Iterator[str]:
    """Nodes with an INT8 activation and a float weight."""
    for node in graph.compute_nodes:
        if node.activation_grid is not None and node.weight_grid is None:
            yield node.layer


def int8_depthwise(graph: AnalyzedGraph) -> Iterator[str]:
    """INT8 convolutions with one input channel a group."""
    return (node.layer for node in graph.int8_nodes if node.is_depthwise)


def fp16_results_of_channel_scales(graph: AnalyzedGraph) -> Iterator[str]:
    """INT8 matrix products with a scale per channel and an FP16 result."""
    for node, grid in _weights(graph):
        half = node.node.outputs[0].dtype == ir.DataType.FLOAT16
        if node.node.op_type in ("MatMul", "Gemm") and grid.per_channel and half:
            yield node.layer


def weights_kept_as_float(graph: AnalyzedGraph) -> Iterator[str]:
    """Nodes that quantize their weight anew from a float one in the file."""
    for node in graph.compute_nodes:
        if node.weight_grid is not None and node.weight is not None and node.weight_grid.quantize is not None:
            yield node.layer


def _weights(graph: AnalyzedGraph) -> Iterator[tuple[ComputeNode, Grid]]:
    for node in graph.int8_nodes:
        # a weight on the left of a matrix product has its channels elsewhere; no exporter writes one
        if node.weight_grid is not None and node.weight is node.node.inputs[1]:
            yield node, node.weight_grid


LAYER_RULES: tuple[Rule, ...] = (
    Rule(
        "weight-axis",
        "warning",
        weight_scales_on_another_axis,
        "TensorRT builds it and computes the layer in float without a word",
        "scales along the output channels: axis 0 of Conv and of Gemm with transB, axis 1 of MatMul (K, N); "
        "'convnext-deploy export' writes them so",
    ),
    Rule(
        "weight-scale-per-tensor",
        "warning",
        weight_scales_per_tensor,
        "one scale for all output channels costs accuracy, most where their weights differ in size",
        f"{QUANTIZE}, or quantize_static with per_channel=True",
    ),
    Rule(
        "activation-scale-per-channel",
        "warning",
        activation_scales_per_channel,
        "TensorRT takes one scale, a scalar, for an activation; else it computes the layer in float without a word",
        f"{QUANTIZE}, which gives each activation one scalar scale",
    ),
    Rule(
        "weight-only",
        "warning",
        weight_only_nodes,
        "the weight is made float again in every run: a smaller file and no faster layer",
        f"quantize the layer's input as well: {QUANTIZE}, or leave the layer float",
    ),
    Rule(
        "activation-only",
        "warning",
        activation_only_nodes,
        "with a float weight the layer computes in float, and the pair at its input only rounds",
        f"quantize the layer's weight as well: {QUANTIZE}, or leave the layer float",
    ),
    Rule(
        "int8-depthwise",
        "warning",
        int8_depthwise,
        "TensorRT-RTX pads every channel to four, and standard TensorRT is often slower than with FP16",
        "leave depthwise convolutions float, as 'convnext-deploy quantize --target tensorrt' does; with "
        "quantize_static: nodes_to_exclude",
    ),
    Rule(
        "fp16-result-of-int8",
        "warning",
        fp16_results_of_channel_scales,
        "TensorRT-RTX 1.7 keeps the integer sums of such a node in FP16 before it scales them: beyond 65504 they are "
        "infinite",
        "for that runtime let the pairs and the node be FP32 between casts: "
        "'convnext-deploy export --precision fp16 --runtime tensorrt-rtx'",
    ),
    Rule(
        "weight-kept-as-float",
        "note",
        weights_kept_as_float,
        "the file is up to four times as large as with integers, and each runtime rounds by itself",
        'store integers and DequantizeLinear: quantize_static with extra_options={"AddQDQPairToWeight": False}, or '
        "'convnext-deploy export'",
    ),
)
