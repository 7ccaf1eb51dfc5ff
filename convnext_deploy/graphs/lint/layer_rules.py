"""Traps in how the products of a quantized graph are quantized: activations, weights, and what gains nothing."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from convnext_deploy.graphs.compute_nodes import Grid, Product, Subject
from convnext_deploy.graphs.lint.rule import QUANTIZE, TrapKind
from convnext_deploy.graphs.onnx_view import GraphView, attribute


def weight_scales_on_another_axis(subject: Subject) -> Iterator[str]:
    """INT8 products whose weight has its scales along another axis than that of the output channels, or in blocks."""
    for product, grid in _weights(subject):
        rank = len(subject.view.shapes.get(product.weight_name or "", ()))
        wrong = grid.per_channel and grid.axis is not None and rank and grid.axis != product.weight_axis(rank)
        if wrong or attribute(grid.dequantize, "block_size", 0):
            yield product.layer


def weight_scales_per_tensor(subject: Subject) -> Iterator[str]:
    """INT8 products with one scale for all output channels."""
    for product, grid in _weights(subject):
        if grid.scale is not None and not grid.per_channel and _output_channels(subject.view, product) > 1:
            yield product.layer


def activation_scales_per_channel(subject: Subject) -> Iterator[str]:
    """Products whose activation has a list of scales, were it one alone, for a convolution."""
    for product in subject.products:
        scale = product.activation.scale if product.activation is not None else None
        if scale is not None and (scale.size > 1 or (scale.ndim and product.node.op_type == "Conv")):
            yield product.layer


def weight_only_products(subject: Subject) -> Iterator[str]:
    """Products with an INT8 weight and a float activation."""
    for product in subject.products:
        if product.weight is not None and product.weight_name is not None and product.activation is None:
            yield product.layer


def activation_only_products(subject: Subject) -> Iterator[str]:
    """Products with an INT8 activation and a float weight."""
    for product in subject.products:
        if product.activation is not None and product.weight is None:
            yield product.layer


def int8_depthwise(subject: Subject) -> Iterator[str]:
    """INT8 convolutions with one input channel a group."""
    for product in subject.int8_products:
        if product.is_depthwise(subject.view):
            yield product.layer


def fp16_results_of_channel_scales(subject: Subject) -> Iterator[str]:
    """INT8 matrix products with a scale per channel and an FP16 result."""
    for product, grid in _weights(subject):
        half = subject.view.type_of(product.node.output[0]) == TensorProto.FLOAT16
        if product.node.op_type in ("MatMul", "Gemm") and grid.per_channel and half:
            yield product.layer


def weights_kept_as_float(subject: Subject) -> Iterator[str]:
    """Products that quantize their weight anew from a float one in the file."""
    for product in subject.products:
        if product.weight is not None and product.weight_name is not None and product.weight.quantize is not None:
            yield product.layer


def _weights(subject: Subject) -> Iterator[tuple[Product, Grid]]:
    for product in subject.int8_products:
        # a weight on the left of a matrix product has its channels elsewhere; no exporter writes one
        if product.weight is not None and product.weight_name == product.node.input[1]:
            yield product, product.weight


def _output_channels(view: GraphView, product: Product) -> int:
    shape = view.shapes.get(product.weight_name or "", ())
    size = shape[product.weight_axis(len(shape))] if shape else None
    return size if isinstance(size, int) else 1


PRODUCT_TRAPS: tuple[TrapKind, ...] = (
    TrapKind(
        "weight-axis",
        "warning",
        weight_scales_on_another_axis,
        "TensorRT builds it and computes the layer in float without a word",
        "scales along the output channels: axis 0 of Conv and of Gemm with transB, axis 1 of MatMul (K, N); "
        "'convnext-deploy export' writes them so",
    ),
    TrapKind(
        "weight-scale-per-tensor",
        "warning",
        weight_scales_per_tensor,
        "one scale for all output channels costs accuracy, most where their weights differ in size",
        f"{QUANTIZE}, or quantize_static with per_channel=True",
    ),
    TrapKind(
        "activation-scale-per-channel",
        "warning",
        activation_scales_per_channel,
        "TensorRT takes one scale, a scalar, for an activation; else it computes the layer in float without a word",
        f"{QUANTIZE}, which gives each activation one scalar scale",
    ),
    TrapKind(
        "weight-only",
        "warning",
        weight_only_products,
        "the weight is made float again in every run: a smaller file and no faster layer",
        f"quantize the layer's input as well: {QUANTIZE}, or leave the layer float",
    ),
    TrapKind(
        "activation-only",
        "warning",
        activation_only_products,
        "with a float weight the layer computes in float, and the pair at its input only rounds",
        f"quantize the layer's weight as well: {QUANTIZE}, or leave the layer float",
    ),
    TrapKind(
        "int8-depthwise",
        "warning",
        int8_depthwise,
        "TensorRT-RTX pads every channel to four, and standard TensorRT is often slower than with FP16",
        "leave depthwise convolutions float, as 'convnext-deploy quantize --target tensorrt' does; with "
        "quantize_static: nodes_to_exclude",
    ),
    TrapKind(
        "fp16-result-of-int8",
        "warning",
        fp16_results_of_channel_scales,
        "TensorRT-RTX 1.7 keeps the integer sums of such a product in FP16 before it scales them: beyond 65504 they are "
        "infinite",
        "for that runtime let the pairs and the product be FP32 between casts: "
        "'convnext-deploy export --precision fp16 --runtime tensorrt-rtx'",
    ),
    TrapKind(
        "weight-kept-as-float",
        "note",
        weights_kept_as_float,
        "the file is up to four times as large as with integers, and each runtime rounds by itself",
        'store integers and DequantizeLinear: quantize_static with extra_options={"AddQDQPairToWeight": False}, or '
        "'convnext-deploy export'",
    ),
)
