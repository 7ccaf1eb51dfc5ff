"""A layer that `quantize` leaves in float has the folded float network's weights and bias, in PyTorch and in the ONNX file."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.exporters.onnx.export import export_network
from convnext_deploy.models.channel_scaling import scale_inputs, smoothable
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.gptq import adjust_blocks
from convnext_deploy.quantization.prepare import prepare, quantized_layers, quantizers_disabled, without_quantizers
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.quantization.sensitivity import compute_logits, count_macs, kl_divergence, measure_sensitivity
from convnext_deploy.stages.float_layers import float_modules, leave_in_float
from tests.weights import fill

LAYERS = {"stages.0.0.pwconv1": "stages.0.0.norm", "stages.1.0.pwconv2": "stages.1.0.grn", "downsample_layers.2.1": ""}
IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def layers_of(network: ConvNeXt) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module


@pytest.fixture(scope="module")
def folded() -> ConvNeXt:
    """A network of version 2, whose GRN is smoothed as well."""
    with torch.random.fork_rng([]):
        network = ConvNeXt((1, 1, 1, 1), (8, 8, 12, 12), num_classes=3, layer_scale_init=None, use_grn=True).eval()
    fill(network)
    return fold(network, default_preprocess(32)).network


@pytest.fixture(scope="module")
def quantized(folded: ConvNeXt) -> ConvNeXt:
    """The same after every step that changes weights and biases."""
    network = without_quantizers(folded)
    generator = torch.Generator().manual_seed(1)
    widths = {
        name: layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        for name, layer in layers_of(network)
    }
    scales = {name: torch.rand(widths[name], generator=generator) + 0.5 for name in smoothable(network)}
    scale_inputs(network, scales)
    calibrate(prepare(network, resolve_scheme("tensorrt")), [IMAGES])
    with torch.no_grad():
        adjust_blocks(network.trunk(), IMAGES, correct_on=16)
    return network


def test_layers_in_float_are_those_of_the_float_network(folded: ConvNeXt, quantized: ConvNeXt) -> None:
    scheme = resolve_scheme("tensorrt").with_overrides(dict.fromkeys(LAYERS, "float"))
    before = copy.deepcopy(quantized.state_dict())
    result = leave_in_float(quantized, folded, scheme, tuple(LAYERS))
    plain, found = folded.state_dict(), result.state_dict()
    for name in (*LAYERS, *filter(None, LAYERS.values())):
        own = {key: value for key, value in found.items() if key.startswith(f"{name}.")}
        assert own.keys() == {key for key in plain if key.startswith(f"{name}.")}, name
        for key, value in own.items():
            assert torch.equal(value, plain[key]), key
    assert not torch.equal(before["stages.0.0.pwconv1.weight"], plain["stages.0.0.pwconv1.weight"])
    others = {key for key in found if not key.startswith((*LAYERS, *filter(None, LAYERS.values())))}
    changed = {key for key in others if not torch.equal(found[key], before[key])}
    assert changed == {"downsample_layers.2.0.weight"}  # the norm before the third of them; its bias is folded
    assert {name for name, _ in quantized_layers(quantized)} - set(LAYERS) == {n for n, _ in quantized_layers(result)}
    assert all(torch.equal(value, before[key]) for key, value in quantized.state_dict().items())
    for parameter in result.parameters():  # nothing is shared with the float network
        assert all(parameter is not other for other in folded.parameters())

    graph = export_network(result, 3, 32, runtime="tensorrt").graph
    stored = {
        (node.doc_string, role): numpy_helper.to_array(constants[node.input[place]])
        for constants in [{initializer.name: initializer for initializer in graph.graph.initializer}]
        for node in graph.graph.node
        for place, role in enumerate(("input", "weight", "bias"))
        if place < len(node.input) and node.input[place] in constants and node.op_type in ("MatMul", "Conv", "Gemm")
    }
    for name in LAYERS:
        weight = plain[f"{name}.weight"].numpy()
        exported = stored[name, "weight"]
        np.testing.assert_array_equal(
            exported, weight.T if exported.shape != weight.shape or weight.ndim == 2 else weight
        )
        assert any(
            np.array_equal(numpy_helper.to_array(each).ravel(), plain[f"{name}.bias"].numpy())
            for each in graph.graph.initializer
        ), name


@torch.no_grad()
def test_sensitivity_is_of_one_layer_among_those_of_the_float_network(folded: ConvNeXt, quantized: ConvNeXt) -> None:
    reference = compute_logits(folded, IMAGES)
    before = {key: id(value) for key, value in quantized.named_parameters()}
    floats, macs = float_modules(quantized, folded), count_macs(quantized, IMAGES[:1])
    effects = {e.layer: e for e in measure_sensitivity(quantized, IMAGES, reference, macs, floats=floats)}
    assert {key: id(value) for key, value in quantized.named_parameters()} == before
    names = [name for name, _ in quantized_layers(quantized)]
    scheme = resolve_scheme("tensorrt")
    for name in (names[0], names[-1]):
        others = [each for each in names if each != name]
        alone = leave_in_float(quantized, folded, scheme.with_overrides(dict.fromkeys(others, "float")), others)
        expected = kl_divergence(reference, compute_logits(alone, IMAGES))
        assert effects[name].kl == pytest.approx(expected, rel=1e-6)
        with quantizers_disabled(quantized, [name]):  # with what rounding and correction left of the others
            assert kl_divergence(reference, compute_logits(quantized, IMAGES)) > 1.02 * expected
