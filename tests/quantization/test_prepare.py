"""Quantizers in a network: where they are, that they can vanish without trace, and that PTQ and QAT compute the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import DeployError, RecipeError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import build_model
from convnext_deploy.quantization.calibration import AUTO, calibrate
from convnext_deploy.quantization.fake_quantize import FakeQuantize
from convnext_deploy.quantization.observers import RANGE_METHODS
from convnext_deploy.quantization.prepare import (
    QuantizedConv2d,
    QuantizedLinear,
    prepare,
    quantized_layers,
    quantizers_disabled,
    read_sites,
    without_quantizers,
)
from convnext_deploy.quantization.scheme import QuantizationScheme, TensorScheme, resolve_scheme

SCHEME = resolve_scheme("tensorrt")


def small_network(*, use_grn: bool = False) -> ConvNeXt:
    """A network whose logits depend on every layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConvNeXt(
            (1, 1, 2, 1), (8, 16, 16, 24), num_classes=5, layer_scale_init=None if use_grn else 0.5, use_grn=use_grn
        )
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def calibrated(network: ConvNeXt, scheme: QuantizationScheme = SCHEME) -> ConvNeXt:
    prepare(network, scheme)
    calibrate(network, [images(seed=1), images(seed=2)], "minmax")
    return network


@pytest.mark.parametrize("variant", ["convnext_tiny", "convnextv2_tiny"])
def test_prepare_chooses_pointwise_and_downsampling_layers_exactly(variant: str) -> None:
    with torch.device("meta"):
        network = prepare(build_model(ModelSpec(variant, 7)), SCHEME)
    blocks = [f"stages.{stage}.{block}" for stage, depth in enumerate((3, 3, 9, 3)) for block in range(depth)]
    linear = {f"{block}.{layer}" for block in blocks for layer in ("pwconv1", "pwconv2")}
    convolutions = {f"downsample_layers.{stage}.1" for stage in (1, 2, 3)}
    assert len(linear) == 36
    found = dict(quantized_layers(network))
    assert found.keys() == linear | convolutions
    assert all(isinstance(found[name], QuantizedLinear) for name in linear)
    assert all(isinstance(found[name], QuantizedConv2d) for name in convolutions)
    for layer in found.values():
        assert layer.input_quantizer.log2_scale.shape == layer.input_quantizer.zero_point.shape == ()
        assert layer.weight_quantizer.log2_scale.shape == (layer.weight.shape[0],)


def test_prepare_keeps_every_float_key_and_weight() -> None:
    network = small_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    after = prepare(network, SCHEME).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    added = [key for key in after if key not in before]
    layers = dict(quantized_layers(network))
    # two scales and zero points of each layer, and a zero point that can be learned where the input is shifted
    assert len(added) == 4 * len(layers) + sum(layer.input_shift for layer in layers.values())
    assert all(key.rsplit(".", 2)[1] in {"input_quantizer", "weight_quantizer"} for key in added)


@pytest.mark.parametrize("use_grn", [False, True])
@torch.no_grad()
def test_prepared_model_is_bit_equal_to_float_model_when_quantizers_are_disabled(use_grn: bool) -> None:
    network = small_network(use_grn=use_grn)
    expected = network(images())
    calibrated(network)
    quantized = network(images())
    assert not torch.equal(quantized, expected)
    with quantizers_disabled(network):
        torch.testing.assert_close(network(images()), expected, rtol=0, atol=0)
    assert torch.equal(network(images()), quantized)


def test_quantizers_disabled_restores_when_the_block_fails() -> None:
    network = calibrated(small_network())
    quantizers = [module for module in network.modules() if isinstance(module, FakeQuantize)]
    quantizers[0].enabled = False
    seen: list[bool] = []

    def fail() -> None:
        with quantizers_disabled(network):
            seen.extend(quantizer.enabled for quantizer in quantizers)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False] * len(quantizers)
    assert [quantizer.enabled for quantizer in quantizers] == [False] + [True] * (len(quantizers) - 1)


@torch.no_grad()
def test_without_quantizers_is_bit_equal_to_the_float_model() -> None:
    network = small_network()
    reference = copy.deepcopy(network)
    quantized = calibrated(network)(images())
    plain = without_quantizers(network)
    assert torch.equal(plain(images()), reference(images()))
    assert plain.state_dict().keys() == reference.state_dict().keys()
    assert [type(module) for module in plain.modules()] == [type(module) for module in reference.modules()]
    assert torch.equal(network(images()), quantized)
    plain.head.weight.zero_()
    assert torch.equal(network(images()), quantized)


@torch.no_grad()
def test_quantized_model_stays_close_to_the_float_model() -> None:
    network = small_network()
    expected = network(images())
    error = (calibrated(network)(images()) - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@torch.no_grad()
def test_read_sites_dequantize_to_the_fake_quantized_weights_bit_exactly() -> None:
    network = calibrated(small_network())
    sites = read_sites(network)
    layers = dict(quantized_layers(network))
    assert sites.keys() == layers.keys()
    for name, site in sites.items():
        layer = layers[name]
        assert site.weight.dtype == site.input.zero_point.dtype == np.int8
        assert site.weight_scale.dtype == site.input.scale.dtype == np.float32
        assert site.weight.shape == tuple(layer.weight.shape)
        scale = site.weight_scale.reshape(-1, *[1] * (site.weight.ndim - 1))
        assert np.array_equal(site.weight.astype(np.float32) * scale, layer.weight_quantizer(layer.weight).numpy())
        assert np.abs(site.weight).reshape(len(site.weight), -1).max(axis=1).min() >= 126
        assert site.input.zero_point == 0
        assert site.output is None


@torch.no_grad()
def test_forward_computes_with_the_numbers_of_read_sites() -> None:
    network = calibrated(small_network())
    name = "stages.2.1.pwconv2"
    layer, site = dict(quantized_layers(network))[name], read_sites(network)[name]
    captured: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda _, inputs, output: captured.append((inputs[0], output)))
    network(images())
    ((x, output),) = captured
    assert site.input.shift is not None  # it reads a GELU
    assert site.input.zero_point == 0
    integers = np.clip(np.rint((x.numpy() + site.input.shift) / site.input.scale), -128, 127).astype(np.int64)
    products = integers.reshape(-1, integers.shape[-1]) @ site.weight.T.astype(np.int64)
    assert site.bias is not None
    expected = products * (site.input.scale.astype(float) * site.weight_scale.astype(float)) + site.bias
    np.testing.assert_allclose(output.numpy().reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_read_sites_holds_scalars_when_scheme_is_affine_and_per_tensor() -> None:
    affine = TensorScheme(-128, 127, symmetric=False, per_channel=False)
    scheme = QuantizationScheme("other", (("stages.*.pwconv2", "int8-output"),), affine, SCHEME.activation)
    network = calibrated(small_network(), scheme)
    sites = read_sites(network)
    assert len(sites) == 5
    for name, site in sites.items():
        layer = dict(quantized_layers(network))[name]
        assert site.output is not None
        assert layer.output_quantizer is not None
        assert site.weight_scale.shape == ()
        for grid, quantizer in ((site.input, layer.input_quantizer), (site.output, layer.output_quantizer)):
            assert grid.scale.shape == grid.zero_point.shape == ()
            assert grid.zero_point.dtype == np.int8
            assert grid.zero_point == quantizer.zero_point.item()
        # A GELU's output has a short negative side, so that its zero lies near the lower end.
        assert -128 < site.input.zero_point < -60


def test_calibrate_observes_the_float_model_over_all_batches() -> None:
    network = small_network()
    name = "downsample_layers.2.1"
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    batches = [images(seed=1), 3 * images(seed=2), images(1, seed=3)]
    with torch.no_grad():
        for batch in batches:
            network(batch)
    handle.remove()
    prepare(network, SCHEME)
    calibrate(network, iter(batches), "minmax")
    layer = dict(quantized_layers(network))[name]
    expected = max(x.abs().max().item() for x in seen) / 127
    assert layer.input_quantizer.scale.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        layer.weight_quantizer.scale.detach(), layer.weight.detach().abs().flatten(1).amax(1) / 127
    )
    assert all(
        quantizer.enabled and quantizer.observer is None
        for quantizer in network.modules()
        if isinstance(quantizer, FakeQuantize)
    )


def test_calibrate_refuses_when_there_is_no_batch() -> None:
    with pytest.raises(DeployError, match="no calibration images"):
        calibrate(prepare(small_network(), SCHEME), [], "minmax")


@pytest.mark.parametrize("method", [AUTO, *RANGE_METHODS])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 1])
def test_calibrate_refuses_when_values_are_not_finite(method: str, value: float, position: int) -> None:
    batches = [images(seed=1), images(seed=2)]
    batches[position][0, 0, 0, 0] = value
    network = prepare(small_network(), SCHEME)
    with pytest.raises(DeployError) as caught:
        calibrate(network, batches, method, 99.9)
    message = str(caught.value)
    assert any(message.startswith(f"the input of '{name}' is not finite") for name, _ in quantized_layers(network))
    assert "\n" not in message


def test_prepare_refuses_when_no_layer_is_a_site() -> None:
    with pytest.raises(
        RecipeError, match="no layer is quantized under the 'tensorrt' scheme: its layers match none of"
    ):
        prepare(nn.Sequential(nn.Linear(2, 2)), SCHEME)


def test_resolve_scheme_suggests_a_name_when_target_is_unknown() -> None:
    with pytest.raises(RecipeError, match=r"unknown quantization target 'tensort'\. Did you mean 'tensorrt'\?"):
        resolve_scheme("tensort")


@torch.no_grad()
def test_qat_prepared_forward_is_bit_equal_to_ptq_forward(small_artifacts: dict[str, Artifact]) -> None:
    ptq = load_network(small_artifacts["ptq"])
    qat = load_network(small_artifacts["ptq"]).train()
    assert len(dict(quantized_layers(ptq))) == 11
    expected = ptq(images())
    torch.testing.assert_close(qat(images()), expected, rtol=0, atol=0)
    assert not torch.equal(without_quantizers(ptq)(images()), expected)


@torch.no_grad()
def test_ptq_artifact_without_quantizers_is_near_its_float_source(small_artifacts: dict[str, Artifact]) -> None:
    source, ptq = load_network(small_artifacts["student"]), load_network(small_artifacts["ptq"])
    expected = source(images())
    # folding and smoothing move nothing that counts; bias correction moves what quantization would have moved the other way
    difference = (without_quantizers(ptq)(images()) - expected).abs().max()
    assert 0 < difference <= 0.05 * expected.abs().max()


def test_qat_moves_weights_and_scales(small_artifacts: dict[str, Artifact]) -> None:
    before = load_network(small_artifacts["ptq"]).state_dict()
    after = load_network(small_artifacts["qat"]).state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "stages.0.0.pwconv1.weight" in changed
    assert "stages.0.0.pwconv1.weight_quantizer.log2_scale" in changed
    assert "stages.0.0.pwconv1.input_quantizer.log2_scale" in changed


def test_autocast_takes_no_digits_from_what_is_quantized() -> None:
    network = calibrated(small_network())
    for _, layer in quantized_layers(network):
        shape = (5, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 6, 6)
        x = 7 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            found, rough = layer(x), layer(x.bfloat16())  # the second as what comes before leaves it
        assert torch.equal(found, layer(x))
        assert torch.equal(rough, layer(x.bfloat16().float()))
