"""Calibration: which grid `auto` takes, what it keeps of the inputs, and what it does with images that are not right."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.errors import DeployError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.calibration import calibrate, freeze_weight
from convnext_deploy.quantization.fake_quantize import round_bias
from convnext_deploy.quantization.observers import RANGE_METHODS, ActivationObserver
from convnext_deploy.quantization.prepare import QuantizedLayer, prepare, quantized_layers
from convnext_deploy.quantization.qparams import mse_weight_qparams
from convnext_deploy.quantization.scheme import QuantizationScheme, TensorScheme, resolve_scheme
from convnext_deploy.quantization.seen import InputSample, observe
from tests.models.conftest import assert_equal_states
from tests.weights import fill

U8 = TensorScheme(0, 255, symmetric=False, per_channel=False)
U4 = TensorScheme(0, 15, symmetric=False, per_channel=False)
S4 = TensorScheme(-8, 7, symmetric=True, per_channel=False)
S8_TENSOR = TensorScheme(-128, 127, symmetric=True, per_channel=False)
S8 = TensorScheme(-128, 127, symmetric=True, per_channel=True)
KINDS = pytest.mark.parametrize("kind", ["linear", "convolution"])
MOST_VALUES = 2 << 20  # that a sample may hold


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(
    kind: str, activation: TensorScheme = U8, weight: TensorScheme = S8, choice: str = "int8"
) -> nn.Sequential:
    layer = nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed))
    return prepare(nn.Sequential(layer).eval(), QuantizationScheme("test", (("*", choice),), activation, weight))


def only_layer(model: nn.Module) -> QuantizedLayer:
    ((_, layer),) = quantized_layers(model)
    return layer


def batches_of(kind: str, shape: str, count: int = 3) -> list[Tensor]:
    """Return inputs of which different ranges are the best."""
    batches = [noise(40, 6, seed=10 + i) if kind == "linear" else noise(8, 6, 9, 9, seed=10 + i) for i in range(count)]
    if shape == "even":
        return [torch.erf(batch / 2**0.5) for batch in batches]
    if shape == "tails":
        return [batch**5 for batch in batches]
    for batch in batches:
        batch[0, 0] *= 40 if shape == "outlier" else 1e4  # one value of a row, or one channel of an image
    return batches


def small_network() -> ConvNeXt:
    with torch.random.fork_rng([]):
        network = ConvNeXt((1, 1, 1, 1), (8, 8, 12, 12), num_classes=3, layer_scale_init=0.5).eval()
    fill(network)
    return network


def candidate_errors(kind: str, layer: QuantizedLayer, batches: list[Tensor]) -> dict[str, tuple[float, float, int]]:
    """Return for every method the squared error of the layer's output, scale and zero point, in float64."""
    seen = ActivationObserver(-1 if kind == "linear" else 1)
    for batch in batches:
        seen.observe(batch)
    scheme = layer.input_quantizer.scheme
    x, weight = torch.cat(batches).double().numpy(), layer.weight.detach().double()
    weight_scale, _ = mse_weight_qparams(layer.weight, layer.weight_quantizer.scheme)
    steps = weight_scale.double().view(-1, *[1] * (weight.ndim - 1))
    rounded = (weight / steps).round().clamp(-128, 127) * steps

    def output(values: Tensor, by: Tensor) -> Tensor:
        return values @ by.T if kind == "linear" else F.conv2d(values, by, None, 2, 1, 1, 2)

    found = {}
    for method in RANGE_METHODS:
        low, high = (np.float32(end) for end in seen.value_range(method, scheme, 97))  # as the grid is held
        if scheme.symmetric:
            scale, zero = max(-low, high) / np.float32(scheme.quant_max), 0
        else:
            scale = (high - low) / np.float32(scheme.quant_max - scheme.quant_min)
            zero = int(np.clip(scheme.quant_min - np.round(low / scale), scheme.quant_min, scheme.quant_max))
        integers = np.clip(np.round(x / scale) + zero, scheme.quant_min, scheme.quant_max)
        difference = output(torch.tensor((integers - zero) * scale), rounded) - output(torch.tensor(x), weight)
        found[method] = (difference.square().sum().item(), float(scale), zero)
    return found


@KINDS
@pytest.mark.parametrize("scheme", [U8, S4], ids=["unsigned", "signed"])
def test_auto_takes_the_range_with_the_least_error_of_the_output(kind: str, scheme: TensorScheme) -> None:
    winners = set()
    for shape in ("even", "tails", "outlier", "unread"):
        model, batches = layer_of(kind, scheme), batches_of(kind, shape)
        layer = only_layer(model)
        if shape == "unread":  # outliers in a channel that the layer does not read, so they may be cut off
            layer.weight.data[:, 0] = 0
        calibrate(model, batches, percentile=97)
        expected = candidate_errors(kind, layer, batches)
        method = min(expected, key=lambda name: expected[name][0])
        winners.add(method)
        scale, zero = layer.input_quantizer.qparams()
        assert scale.item() == pytest.approx(expected[method][1], rel=1e-5)
        assert zero.item() == expected[method][2]
        assert shape != "unread" or method not in ("minmax", "mse"), "the least error of the input is the same choice"
    assert len(winners) > 1, "one method is best for everything, so the choice is not seen"


@KINDS
def test_auto_gives_the_output_the_range_with_its_own_least_error(kind: str) -> None:
    model, batches = layer_of(kind, U4, choice="int8-output"), batches_of(kind, "tails")
    layer = only_layer(model)
    with torch.no_grad():
        seen = ActivationObserver(-1 if kind == "linear" else 1)
        weight, bias = layer.weight, layer.bias
        for x in batches:
            seen.observe(F.linear(x, weight, bias) if kind == "linear" else F.conv2d(x, weight, bias, 2, 1, 1, 2))
    low, high = seen.value_range("mse", U4)
    assert high - low < 0.95 * (seen.channel_maximum.max() - seen.channel_minimum.min())  # not the extremes
    calibrate(model, batches)
    assert layer.output_quantizer is not None
    assert layer.output_quantizer.scale.item() == pytest.approx((high - low) / 15, rel=1e-5)


@KINDS
def test_minmax_covers_the_extremes_of_inputs_and_weights_however_they_come(kind: str) -> None:
    model, batches = layer_of(kind), batches_of(kind, "tails")
    layer = only_layer(model)
    calibrate(model, batches, "minmax")
    x, weight = torch.cat(batches).numpy(), layer.weight.detach().flatten(1).numpy()
    step = (x.max() - x.min()) / 255
    assert layer.input_quantizer.scale.item() == pytest.approx(step, rel=1e-6)
    assert layer.input_quantizer.qparams()[1].item() == np.round(-x.min() / step)
    np.testing.assert_allclose(layer.weight_quantizer.scale.detach(), np.abs(weight).max(1) / 127, rtol=2e-6)
    before = copy.deepcopy(model.state_dict())
    calibrate(model, reversed(torch.cat(batches).split(3)), "minmax")
    assert_equal_states(model.state_dict(), before)


@pytest.mark.parametrize("method", ["auto", "minmax"])
def test_calibration_fixes_grids_and_changes_nothing_else(method: str) -> None:
    network = prepare(small_network(), resolve_scheme("onnxruntime"))
    before = copy.deepcopy(network.state_dict())
    calibrate(network, [noise(4, 3, 32, 32)], method)
    for key, value in network.state_dict().items():
        if "quantizer" not in key:
            assert torch.equal(value, before[key]), key
        elif key.endswith("log2_scale"):
            assert value.isfinite().all(), key
            assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_one_image_is_enough(target: str) -> None:
    image = noise(1, 3, 32, 32)
    network = small_network()
    with torch.no_grad():
        expected = network(image)
        calibrate(prepare(network, resolve_scheme(target)), [image])
        assert (network(image) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("count", [1, 2, 31, 33, 64, 65, 100, 1000])
def test_sample_takes_whole_batches_at_even_distances_from_the_first_to_the_last(count: int) -> None:
    sample = InputSample(only_layer(layer_of("linear")))
    for number in range(count):
        sample.observe(torch.full((2, 3, 6), float(number)))  # small, so that a batch is kept whole
    numbers, rows = np.unique(sample.values()[:, 0].numpy(), return_counts=True)
    assert sample.values().shape[1] == 6
    assert numbers[0] == 0
    assert min(count, 16) <= len(numbers) <= 32
    assert len(set(np.diff(numbers))) <= 1
    assert numbers[-1] >= count - 1 - count / 16
    assert set(rows) == {6}


@pytest.mark.parametrize("shape", [(4, 100, 100, 6), (16, 50, 50, 96)])
def test_sample_of_rows_holds_no_more_after_many_batches(shape: tuple[int, ...]) -> None:
    sample = InputSample(only_layer(layer_of("linear")))
    batch, sizes = torch.zeros(shape), []
    for _ in range(70):
        sample.observe(batch)
        sizes.append(sample.values().numel())
    assert max(sizes) <= MOST_VALUES + MOST_VALUES // 16
    assert min(sizes[20:]) >= MOST_VALUES // 4  # and not much less than it may


@pytest.mark.parametrize("side", [8, 64, 500])
def test_sample_of_images_holds_no_more_after_many_batches(side: int) -> None:
    sample = InputSample(only_layer(layer_of("convolution")))
    image = torch.zeros(1, 6, side, side)
    for _ in range(70):
        sample.observe(image.expand(5, -1, -1, -1))
        kept = sample.values()
        assert kept.shape[1:] == image.shape[1:]  # whole images, whose pixels have their neighbours
        assert kept.numel() <= MOST_VALUES + max(image.numel(), MOST_VALUES // 16)


def test_sample_takes_rows_from_all_over_a_batch_and_others_from_the_next() -> None:
    sample = InputSample(only_layer(layer_of("linear")))
    rows = torch.arange(100_000.0)[:, None].expand(-1, 6)
    kept: list[NDArray[np.float32]] = []
    for _ in range(3):
        sample.observe(rows)
        kept.append(sample.values()[sum(len(places) for places in kept) :, 0].numpy())
    for places in kept:
        assert len(np.unique(places)) == len(places) == (1 << 16) // 6
        assert np.diff(np.sort(places)).max() <= 10  # of 9 rows, one
    assert not np.array_equal(np.sort(kept[0]), np.sort(kept[1]))


def test_observing_many_batches_holds_no_more_than_observing_few() -> None:
    model = layer_of("linear", choice="int8-output")
    inputs, outputs = observe(model, (noise(3000, 6, seed=i) for i in range(300)))
    assert inputs.keys() == outputs.keys() == {"0"}
    assert inputs["0"].range.seen == 300 * 3000 * 6
    assert outputs["0"].sample is None
    assert inputs["0"].sample is not None
    assert inputs["0"].sample.values().numel() <= 32 * 3000 * 6


@pytest.mark.parametrize("method", ["auto", "minmax"])
def test_image_that_is_not_finite_is_refused_with_the_layer_that_got_it(method: str) -> None:
    network = prepare(small_network(), resolve_scheme("onnxruntime"))
    bad = noise(4, 3, 32, 32)
    bad[2, 1, 5, 6] = float("nan")
    with pytest.raises(DeployError, match=r"input of 'downsample_layers\.0\.0' is not finite"):
        calibrate(network, [noise(4, 3, 32, 32), bad, noise(4, 3, 32, 32)], method)


def test_outputs_that_are_not_finite_and_no_images_are_refused() -> None:
    model = layer_of("linear", choice="int8-output")
    with torch.no_grad():
        only_layer(model).bias[2] = float("inf")  # type: ignore[index]  # it has one
    with pytest.raises(DeployError, match="output of '0' is not finite"):
        calibrate(model, [noise(4, 6)])
    with pytest.raises(DeployError, match="no calibration images"):
        calibrate(model, [])


def test_observers_go_when_the_images_break_off() -> None:
    network = prepare(small_network(), resolve_scheme("onnxruntime"))
    before = copy.deepcopy(network.state_dict())

    def broken() -> Iterator[Tensor]:
        yield noise(2, 3, 32, 32)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        calibrate(network, broken())
    for _, layer in quantized_layers(network):
        for quantizer in (layer.input_quantizer, layer.weight_quantizer, layer.output_quantizer):
            assert quantizer is None or (quantizer.observer is None and quantizer.enabled)
    assert_equal_states(network.state_dict(), before)


@pytest.mark.parametrize("weight_scheme", [S8, S8_TENSOR], ids=["per-channel", "per-tensor"])
@pytest.mark.parametrize("method", ["auto", "minmax"])
@torch.no_grad()
def test_bias_of_a_dead_channel_fits_int32(method: str, weight_scheme: TensorScheme) -> None:
    model = layer_of("convolution", weight=weight_scheme, choice="int8-output")
    layer = only_layer(model)
    assert layer.bias is not None
    layer.bias[1] = -50.0
    layer.weight[1 if weight_scheme.per_channel else slice(None)] = 0  # the scale is then the smallest there is
    x = 0.01 * noise(4, 6, 8, 8)
    calibrate(model, [x], method)
    steps = layer.bias.double() / (layer.input_quantizer.scale.double() * layer.weight_quantizer.scale.double())
    assert steps.abs().max() <= 2**31 * (1 + 1e-5)  # what the logarithm loses is cut off and is no loss
    rounded = round_bias(layer.bias, layer.input_quantizer.scale, layer.weight_quantizer.scale)
    torch.testing.assert_close(rounded, layer.bias, rtol=1e-5, atol=1e-4)
    assert layer.output_quantizer is not None
    assert (model(x)[:, 1] + 50).abs().max() <= layer.output_quantizer.scale


def test_weight_keeps_its_scale_where_the_bias_fits_or_stays_in_float() -> None:
    scale = torch.tensor([1e-6, 0.01, 0.02, 0.03])
    zero = torch.zeros(4, dtype=torch.int32)
    for choice, first in (("int8", 1e-6), ("int8-output", 50 / (2**31 * 1e-3))):
        layer = only_layer(layer_of("convolution", choice=choice))
        layer.input_quantizer.freeze(torch.tensor(1e-3), torch.tensor(0))
        with torch.no_grad():
            layer.bias.copy_(torch.tensor([50.0, 50.0, 0.0, -50.0]))  # type: ignore[union-attr]  # it has one
        freeze_weight(layer, scale, zero)
        found = layer.weight_quantizer.scale.tolist()
        assert found == pytest.approx([first, 0.01, 0.02, 0.03], rel=1e-5)
