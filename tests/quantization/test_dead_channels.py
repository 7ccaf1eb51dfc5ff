"""Dead channels do not keep their layers in FP32, and small weights that matter keep their scales."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from convnext_deploy.exporters.onnx.export import export_network
from convnext_deploy.exporters.onnx.fp16 import find_islands, measure_ranges, to_half
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.layers import ScaleNorm
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.dead_channels import SMALLEST_IN_HALF, raise_dead_channels, scales_kept_in_half
from convnext_deploy.quantization.prepare import prepare, quantized_layers, read_sites
from convnext_deploy.quantization.scheme import SCHEMES, resolve_scheme
from tests.exporters.test_fp16 import evaluate
from tests.shared import slow_except
from tests.weights import fill

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Change = Callable[[ConvNeXt], None]


def one_channel(network: ConvNeXt) -> None:
    """Let LayerScale switch one channel of every block off."""
    for block in blocks_of(network).values():
        for parameter in (block.pwconv2.weight, block.pwconv2.bias):
            parameter[3].mul_(1e-6)


def all_channels(network: ConvNeXt) -> None:
    """Let every block add next to nothing, as those of a network that was trained for a short time."""
    for block in blocks_of(network).values():
        block.pwconv2.weight.mul_(1e-4)
        assert block.pwconv2.bias is not None
        block.pwconv2.bias.mul_(1e-4)


def small_stream(network: ConvNeXt) -> None:
    """Let a stream be as small as what the blocks add, which then matters."""
    all_channels(network)
    for layer in network.downsample_layers:
        for parameter in list(layer.parameters())[-2:]:
            parameter.mul_(1e-5)


def blocks_of(network: nn.Module) -> dict[str, Block]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Block)}


@torch.no_grad()
def calibrated(change: Change, target: str = "tensorrt") -> ConvNeXt:
    with torch.random.fork_rng([]):
        network = ConvNeXt((1, 1, 1, 1), (8, 8, 12, 12), num_classes=3, layer_scale_init=None).eval()
    fill(network)
    change(network)
    calibrate(prepare(network, resolve_scheme(target)), [IMAGES])
    return network


INT8_TARGETS = tuple(target for target, scheme in SCHEMES.items() if scheme.precision == "int8")


def raise_in(network: ConvNeXt) -> tuple[str, ...]:
    return raise_dead_channels(network, {f"{name}.pwconv2": name for name in blocks_of(network)}, IMAGES)


@pytest.mark.parametrize("target", slow_except(("tensorrt",), INT8_TARGETS))
@pytest.mark.parametrize("change", [one_channel, pytest.param(all_channels, marks=pytest.mark.heavy)])
def test_no_second_linear_layer_stays_in_fp32_for_a_dead_channel(change: Change, target: str) -> None:
    network = calibrated(change, target)

    found = export_network(network, 3, 32, runtime="tensorrt")
    ranges = measure_ranges(found.float_graph, [IMAGES.numpy()])
    sums = [name for name, m in found.network.named_modules() if isinstance(m, nn.LayerNorm | ScaleNorm)]

    def halve() -> tuple[onnx.ModelProto, list[str]]:
        graph = insert_qdq(found.float_graph, read_sites(network))
        islands = find_islands(graph, sums, ranges, int8_matmuls=False)
        layers = {node.output[0]: node.doc_string for node in graph.graph.node}
        return to_half(graph, islands), [layers[name] for name in islands if "pwconv2" in layers[name]]

    graph, in_fp32 = halve()
    assert len(set(in_fp32)) == 4
    with torch.no_grad():
        expected = network(IMAGES[:2]).numpy()
    spread = np.ptp(expected)
    before = np.abs(evaluate(graph, IMAGES[:2].numpy()) - expected).max() / spread
    assert len(raise_in(network)) == 4
    graph, in_fp32 = halve()
    assert in_fp32 == []
    assert np.abs(evaluate(graph, IMAGES[:2].numpy()) - expected).max() / spread < before + 0.005


def test_scales_of_what_matters_stay() -> None:
    network = calibrated(small_stream)
    before = [layer.weight_quantizer.log2_scale.clone() for _, layer in quantized_layers(network)]
    assert raise_in(network) == ()
    for (_, layer), scale in zip(quantized_layers(network), before, strict=True):
        assert torch.equal(layer.weight_quantizer.log2_scale, scale)
    # nor do those of any layer that does not add to a stream
    assert raise_dead_channels(calibrated(all_channels), {}, IMAGES) == ()


def test_only_scales_below_those_of_fp16_are_raised_and_training_leaves_them_there() -> None:
    network = calibrated(one_channel)
    layers = {name: layer.weight_quantizer for name, layer in quantized_layers(network)}
    before = {name: quantizer.scale.detach().clone() for name, quantizer in layers.items()}
    raise_in(network)
    for name, quantizer in layers.items():
        expected = before[name].clamp(min=SMALLEST_IN_HALF) if "pwconv2" in name else before[name]
        torch.testing.assert_close(quantizer.scale.detach(), expected, rtol=1e-6, atol=0)
    name = "stages.1.0.pwconv2"
    with scales_kept_in_half(network), torch.no_grad():
        layers[name].log2_scale.sub_(0.1)
        small = layers["stages.1.0.pwconv1"].log2_scale.add_(0.1)
        moved = small.clone()
    assert layers[name].scale.min() == SMALLEST_IN_HALF
    assert (layers[name].scale > SMALLEST_IN_HALF).sum() == 7
    assert torch.equal(small, moved)
