"""FP16 graphs: right where naive ones overflow, types as they say, FP32 only where it is needed.

ONNX's reference evaluator computes every node in the type that the file says, so it overflows where FP16 does.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.onnx.fp16 import LARGEST, SMALLEST, find_islands, measure_ranges, to_half
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.layers import GRN, ScaleNorm
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, read_sites
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.exporters.conftest import Network
from tests.exporters.test_variants import logits_of
from tests.weights import random_network

Change = Callable[[ConvNeXt], None]
SUMS = (nn.LayerNorm, ScaleNorm, GRN)


def layers_that_sum(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SUMS)]


def evaluate(graph: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits, computed in the graph's own types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that numbers overflow is what the naive graphs are for
        found = ReferenceEvaluator(graph).run(None, {"images": images})
    assert isinstance(found, list)
    logits: NDArray[np.float32] = found[0]
    return logits


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / np.ptp(expected))


def types_of(graph: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {initializer.name: initializer.data_type for initializer in graph.graph.initializer}


def halve(network: Network, *, int8_matmuls: bool = False, quantized: bool = False) -> onnx.ModelProto:
    graph = network.quantized.graph if quantized else network.graph
    ranges = measure_ranges(network.graph, [network.images(8)])
    islands = find_islands(graph, layers_that_sum(network.model), ranges, int8_matmuls=int8_matmuls)
    return to_half(graph, islands)


@torch.no_grad()
def large_sums(model: ConvNeXt) -> None:
    """Squares beyond FP16 in every norm of the blocks and in GRN, from activations that FP16 holds (ConvNeXt #80, V2 #66)."""
    model.downsample_layers[0][1].weight.mul_(400)  # type: ignore[index]
    for block in model.modules():
        if isinstance(block, Block) and block.grn is not None:
            block.pwconv1.weight.mul_(100)
            block.pwconv1.bias.mul_(100)


@torch.no_grad()
def large_stream(model: ConvNeXt) -> None:
    """A residual stream that FP16 does not hold; the norms after it make it small again."""
    model.downsample_layers[0][1].weight.mul_(2e5)  # type: ignore[index]


@torch.no_grad()
def small_weights(model: ConvNeXt) -> None:
    """Weights and activations that are 0 in FP16, and large weights that make up for them."""
    for block in model.modules():
        if isinstance(block, Block):
            for parameter in block.pwconv1.parameters():
                parameter.mul_(1e-8)
            block.pwconv2.weight.mul_(1e8)


def changed(network: Network, change: Change) -> ConvNeXt:
    model = copy.deepcopy(network.model)
    change(model)
    return model


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("network", "change"),
    [
        ("v2", large_sums),
        *(
            pytest.param(name, change, marks=pytest.mark.heavy)
            for name, change in (
                ("v1", large_stream),
                ("v1", large_sums),
                ("v2", large_stream),
                ("v1", small_weights),
                ("v2", small_weights),
            )
        ),
    ],
    indirect=["network"],
)
def test_hard_networks_come_out_right_where_naive_fp16_fails(network: Network, change: Change) -> None:
    model, images = changed(network, change), network.images(4)
    graph = export_float(model, network.in_channels, network.image_size)
    expected = logits_of(model, images)
    ranges = measure_ranges(graph, [images])
    right = to_half(graph, find_islands(graph, layers_that_sum(model), ranges, int8_matmuls=False))
    assert relative(evaluate(right, images), expected) < 0.02
    with np.errstate(over="ignore"):  # constants that FP16 does not hold
        naive = evaluate(to_half(graph, {}), images)
    assert not np.isfinite(naive).all() or relative(naive, expected) > 0.5


@pytest.mark.heavy
@pytest.mark.parametrize("network", ["v1", "v2"], indirect=True)
def test_stream_beyond_fp16_needs_its_ranges(network: Network) -> None:
    model, images = changed(network, large_stream), network.images(4)
    graph = export_float(model, network.in_channels, network.image_size)
    with np.errstate(over="ignore"):
        blind = to_half(graph, find_islands(graph, layers_that_sum(model), {}, int8_matmuls=False))
    found = evaluate(blind, images)
    assert not np.isfinite(found).all() or relative(found, logits_of(model, images)) > 0.5


def test_fp16_graph_computes_the_logits(network: Network) -> None:
    images = network.images(6)
    found = evaluate(halve(network), images)
    assert found.dtype == np.float32
    assert 0 < relative(found, logits_of(network.model, images)) < 5e-3


def test_fp16_is_everywhere_but_where_values_are_summed(network: Network) -> None:
    graph = halve(network)
    onnx.checker.check_model(graph, full_check=True)
    types = types_of(graph)
    kinds: dict[str, set[int]] = {}
    for node in graph.graph.node:
        if node.op_type != "Cast":
            kinds.setdefault(node.op_type, set()).update(types[name] for name in (*node.input, *node.output) if name)
    half, single = {TensorProto.FLOAT16}, {TensorProto.FLOAT}
    for operator in ("Conv", "MatMul", "Gemm", "Gelu", "Transpose"):
        assert kinds[operator] == half, operator
    assert kinds["LayerNormalization"] == single
    assert kinds["ReduceMean"] <= {TensorProto.FLOAT, TensorProto.INT64}
    if network.version == 2:
        assert kinds["ReduceL2"] <= {TensorProto.FLOAT, TensorProto.INT64}
        assert kinds["Div"] == single
    (images,), (logits,) = graph.graph.input, graph.graph.output
    assert {v.type.tensor_type.elem_type for v in (images, logits)} == single
    assert (images.name, logits.name) == ("images", "logits")


def test_no_cast_follows_a_cast_and_none_is_made_twice(network: Network) -> None:
    graph = halve(network)
    casts = [node for node in graph.graph.node if node.op_type == "Cast"]
    made = {name for node in casts for name in node.output}
    assert casts
    assert not any(node.input[0] in made for node in casts)
    assert len({(node.input[0], node.attribute[0].i) for node in casts}) == len(casts)


@pytest.mark.parametrize("int8_matmuls", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_quantized_products_compute_in_one_type(network: Network, int8_matmuls: bool) -> None:
    graph = halve(network, int8_matmuls=int8_matmuls, quantized=True)
    onnx.checker.check_model(graph, full_check=True)
    types = types_of(graph)
    makers = {name: node for node in graph.graph.node for name in node.output}
    seen = []
    for node in graph.graph.node:
        if node.op_type not in ("MatMul", "Conv", "Gemm"):
            continue
        quantized = [makers[name] for name in node.input[:2] if name in makers]
        if [maker.op_type for maker in quantized] != ["DequantizeLinear"] * 2:
            continue
        wide = int8_matmuls and node.op_type != "Conv"
        wanted = TensorProto.FLOAT if wide else TensorProto.FLOAT16
        pairs = [*quantized, makers[quantized[0].input[0]]]
        names = [*node.input, *node.output, *(name for pair in pairs for name in (pair.input[1], pair.output[0]))]
        assert {types[name] for name in names} - {TensorProto.INT8} == {wanted}
        seen.append(wide)
    assert set(seen) == ({True, False} if int8_matmuls else {False})


def test_quantized_graph_computes_the_same_in_fp16(network: Network) -> None:
    images = network.images(6)
    expected = evaluate(network.quantized.graph, images)
    for int8_matmuls in (False, True):
        found = evaluate(halve(network, int8_matmuls=int8_matmuls, quantized=True), images)
        assert relative(found, expected) < 0.05  # rounding moves some values to the next integer


@pytest.mark.heavy
def test_scales_too_small_for_fp16_keep_their_layer_in_fp32() -> None:
    model = random_network(ModelSpec("test_convnext2", 5))
    with torch.no_grad():
        first = model.get_submodule("stages.0.0.pwconv2")
        assert isinstance(first, nn.Linear)
        first.weight.mul_(1e-6)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(model)
    quantized = prepare(model, resolve_scheme("tensorrt"))
    calibrate(quantized, [images], "minmax")
    graph = insert_qdq(export_float(plain, 3, 32), read_sites(quantized))
    islands = find_islands(graph, layers_that_sum(plain), {}, int8_matmuls=False)
    mine = {node.output[0] for node in graph.graph.node if node.doc_string == "stages.0.0.pwconv2"}
    assert mine <= islands.keys()
    others = {node.output[0] for node in graph.graph.node if node.doc_string == "stages.0.0.pwconv1"}
    assert not others & islands.keys()
    half = to_half(graph, islands)
    scales = [numpy_helper.to_array(i) for i in half.graph.initializer if "_scale" in i.name]
    assert scales
    assert all(scale.min() >= SMALLEST for scale in scales if scale.dtype == np.float16)
    assert relative(evaluate(half, images.numpy()), logits_of(quantized, images.numpy())) < 0.05


def test_measured_ranges_are_the_largest_absolute_values(network: Network) -> None:
    images = network.images(5)
    found = measure_ranges(network.graph, [images[:3], images[3:]])
    largest: dict[str, float] = {}
    model = copy.deepcopy(network.model)

    def watch(name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            largest[name] = float(output.abs().max())

        module.register_forward_hook(keep)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            watch(name, module)
    logits_of(model, images)
    last = {node.doc_string: node.output[0] for node in network.graph.graph.node}
    assert len(largest) > 10
    for name, value in largest.items():
        assert found[last[name]] == pytest.approx(value, rel=1e-4), name


def test_measure_ranges_refuses_what_is_not_finite(network: Network) -> None:
    images = network.images(2)
    images[0] = np.inf
    with pytest.raises(ExportError, match="is not finite in FP32 already"):
        measure_ranges(network.graph, [images])


def test_largest_leaves_room_for_images_that_were_not_measured() -> None:
    assert float(np.finfo(np.float16).max) / 4 == LARGEST
