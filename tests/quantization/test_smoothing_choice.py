"""Which channels smoothing divides by how much, against SmoothQuant's formula, and when it is left alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.models.channel_scaling import scale_inputs, smoothable
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, quantizers_disabled
from convnext_deploy.quantization.qparams import mse_weight_qparams
from convnext_deploy.quantization.scheme import QuantizationScheme, TensorScheme, resolve_scheme
from convnext_deploy.quantization.seen import observe
from convnext_deploy.quantization.smoothquant import ALPHAS, Smoothing, choose_smoothing, smoothing_scale
from tests.weights import fill

S8 = TensorScheme(-128, 127, symmetric=True, per_channel=False)
U8 = TensorScheme(0, 255, symmetric=False, per_channel=False)
W8 = TensorScheme(-128, 127, symmetric=True, per_channel=True)
KINDS = pytest.mark.parametrize("kind", ["linear", "convolution"])
S4 = TensorScheme(-8, 7, symmetric=True, per_channel=False)  # so coarse that it is better to cut the ends off
GRIDS = pytest.mark.parametrize("grid", [S8, U8, S4], ids=["signed", "unsigned", "coarse"])
Array = NDArray[np.float64]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepared(weight: Tensor, grid: TensorScheme = S8) -> nn.Sequential:
    layer = nn.Linear(1, 1) if weight.ndim == 2 else nn.Conv2d(1, 1, 2, stride=2)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(noise(len(weight), seed=9))
    return prepare(nn.Sequential(layer), QuantizationScheme("test", (("*", "int8"),), grid, W8))


def choose(weight: Tensor, x: Tensor, grid: TensorScheme = S8, alpha: float | None = None) -> Smoothing:
    model = prepared(weight, grid)
    chosen = choose_smoothing(model, observe(model, [x])[0], ["0"], alpha)
    assert chosen.keys() == {"0"}
    return chosen["0"]


def uneven(kind: str) -> tuple[Tensor, Tensor]:
    """Return a weight and inputs of which one channel is 1000 times the others."""
    weight, x = (
        (noise(5, 8), noise(90, 8, seed=1)) if kind == "linear" else (noise(4, 8, 2, 2), noise(6, 8, 6, 6, seed=1))
    )
    x[:, 3] *= 1000
    return weight, x


def scale_by_hand(weight: Tensor, x: Tensor, alpha: float) -> Array:
    """Return equation 4 over its geometric mean."""
    axes = (0,) if x.ndim == 2 else (0, 2, 3)
    highest = np.abs(x.double().numpy()).max(axes)
    scale = highest**alpha / np.abs(weight.double().numpy()).max(axes) ** (1 - alpha)
    return np.asarray(scale / np.prod(scale) ** (1 / len(scale)))


def output(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T if x.ndim == 2 else F.conv2d(x, weight, stride=2)


def left_error(weight: Tensor, x: Tensor, scale: Array, grid: TensorScheme) -> float:
    """Return the squared error of the output for the best of six ranges, with everything computed here in float64."""
    by = torch.tensor(scale).view(1, -1, *[1] * (x.ndim - 2))
    x, expected, weight = x.double() / by, output(x.double(), weight.double()), weight.double() * by
    step = mse_weight_qparams(weight.float(), W8)[0].double().view(-1, *[1] * (x.ndim - 1))
    weight = (weight / step).round().clamp(-128, 127) * step
    errors = []
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        low, high = share * x.min().item(), share * x.max().item()
        unit = max(-low, high) / grid.quant_max if grid.symmetric else (high - low) / grid.quant_max
        zero = 0.0 if grid.symmetric else round(-low / unit)
        seen = ((x / unit).round() + zero).clamp(grid.quant_min, grid.quant_max) - zero
        errors.append((output(seen * unit, weight) - expected).square().sum().item())
    return min(errors)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.85, 1.0])
def test_scale_is_equation_4_over_its_geometric_mean(alpha: float) -> None:
    activation, weight = (10 ** (0.6 * noise(2, 50))).numpy().astype(np.float64)
    expected = activation**alpha / weight ** (1 - alpha)
    expected /= np.exp(np.log(expected).mean())
    found = smoothing_scale(torch.tensor(activation), torch.tensor(weight), alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.log().mean().item() == pytest.approx(0, abs=1e-12)
    narrow = smoothing_scale(torch.tensor(activation).float(), torch.tensor(weight).float(), alpha)
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow, expected, rtol=1e-5)


def test_alpha_1_makes_channels_alike_and_alpha_0_weights() -> None:
    activation, weight = 10 ** noise(2, 20)
    assert (activation / smoothing_scale(activation, weight, 1.0)).std() < 1e-5 * activation.max()
    assert (weight * smoothing_scale(activation, weight, 0.0)).std() < 1e-5 * weight.max()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_dead_channels_get_1_and_do_not_count_for_the_mean(alpha: float) -> None:
    activation = torch.tensor([0.0, 4.0, 2.0, 8.0, 1e-7, 3.0])
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1e-9])
    found = smoothing_scale(activation, weight, alpha)
    assert found[[0, 1, 4, 5]].tolist() == [1, 1, 1, 1]
    live = np.array([2.0**alpha / 2 ** (1 - alpha), 8**alpha / 0.5 ** (1 - alpha)])
    np.testing.assert_allclose(found[[2, 3]], live / np.sqrt(live.prod()), rtol=1e-6)
    assert smoothing_scale(torch.zeros(4), torch.ones(4), alpha).tolist() == [1, 1, 1, 1]
    assert smoothing_scale(torch.ones(4), torch.zeros(4), alpha).tolist() == [1, 1, 1, 1]


@KINDS
@GRIDS
def test_outlier_channel_is_smoothed_with_the_least_error(kind: str, grid: TensorScheme) -> None:
    weight, x = uneven(kind)
    found = choose(weight, x, grid)
    before = left_error(weight, x, np.ones(8), grid)
    errors = {alpha: left_error(weight, x, scale_by_hand(weight, x, alpha), grid) for alpha in ALPHAS}
    assert found.alpha == min(errors, key=lambda alpha: errors[alpha])
    assert found.error == pytest.approx(errors[found.alpha] / before, rel=1e-2)
    assert found.error < (1 if grid is S4 else 0.7)
    np.testing.assert_allclose(found.scale, scale_by_hand(weight, x, found.alpha), rtol=1e-5)
    assert found.scale.argmax() == 3


@KINDS
@torch.no_grad()
def test_calibrated_layer_is_nearer_to_float_after_smoothing(kind: str) -> None:
    weight, x = uneven(kind)
    scale = choose(weight, x).scale.view(1, -1, *[1] * (x.ndim - 2))
    errors = []
    for by in (torch.ones_like(scale), scale):
        model = prepared(weight * by)
        calibrate(model, [x / by])
        with quantizers_disabled(model):
            expected = model(x / by)
        errors.append((model(x / by) - expected).square().sum().item())
    assert errors[1] < 0.6 * errors[0]


@KINDS
@GRIDS
def test_nothing_is_smoothed_where_channels_are_alike(kind: str, grid: TensorScheme) -> None:
    weight, x = uneven(kind)
    axes = (0,) if kind == "linear" else (0, 2, 3)
    alike = x / x.abs().amax(axes, keepdim=True)
    found = choose(weight / weight.abs().amax(axes, keepdim=True), alike, grid)
    assert found.alpha is None
    assert found.scale.tolist() == [1.0] * 8
    assert found.error == 1


@KINDS
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_nothing_is_smoothed_where_everything_is_on_its_grid_unless_told(kind: str, alpha: float | None) -> None:
    weight, x = uneven(kind)
    x = (x / x.abs().amax() * 127).round()
    x.view(-1)[0] = -127
    x[:, 4] = noise(*x[:, 4].shape, seed=5).sign()
    weight = (weight / weight.abs().flatten(1).amax(1).view(-1, *[1] * (x.ndim - 1)) * 127).round()
    found = choose(weight, x, alpha=alpha)
    assert found.alpha == alpha
    if alpha is None:
        assert found.scale.tolist() == [1.0] * 8
        assert found.error == 1
    else:
        assert found.scale.max() > 2


@KINDS
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_fixed_alpha_is_obeyed_also_where_it_harms(kind: str, alpha: float) -> None:
    weight, x = uneven(kind)
    weight[:, 3] *= 1000  # what is large in the input is large in the weight as well, so there is no room for it
    found = choose(weight, x, alpha=alpha)
    assert found.alpha == alpha
    np.testing.assert_allclose(found.scale, scale_by_hand(weight, x, alpha), rtol=1e-5)
    before, after = (left_error(weight, x, s, S8) for s in (np.ones(8), scale_by_hand(weight, x, alpha)))
    assert found.error == pytest.approx(after / before, rel=1e-2)
    assert choose(weight, x).error <= 1


def test_layers_that_cannot_be_scaled_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    fill(model)
    prepare(model, QuantizationScheme("test", (("*", "int8"),), S8, W8))
    inputs, _ = observe(model, [noise(30, 4)])
    assert choose_smoothing(model, inputs, []) == {}
    assert choose_smoothing(model, inputs, ["2", "5"]).keys() == {"2"}
    assert all(found.alpha == 0.4 for found in choose_smoothing(model, inputs, ["0", "2"], 0.4).values())


@torch.no_grad()
def test_network_with_an_outlier_channel_loses_less_after_smoothing() -> None:
    with torch.random.fork_rng([]):
        network = ConvNeXt((1, 1, 1, 1), (8, 8, 12, 12), num_classes=5, layer_scale_init=0.5).eval()
    fill(network)
    layer, norm = "stages.1.0.pwconv1", network.get_submodule("stages.1.0.norm")
    assert isinstance(norm, nn.LayerNorm)
    norm.weight[3] *= 1000
    norm.bias[3] *= 1000
    network.get_parameter(f"{layer}.weight")[:, 3] /= 1000
    images, scheme = noise(16, 3, 32, 32), resolve_scheme("openvino", {layer: "int8", "*": "float"})
    expected = network(images)

    plain = prepare(copy.deepcopy(network), scheme)
    inputs, _ = observe(plain, [images])
    before = copy.deepcopy(plain.state_dict())
    chosen = choose_smoothing(plain, inputs, smoothable(network))
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert chosen.keys() == {layer}  # alone quantized
    assert chosen[layer].alpha is not None
    calibrate(plain, [images])
    smoothed = copy.deepcopy(network)
    scale_inputs(smoothed, {layer: chosen[layer].scale})
    calibrate(prepare(smoothed, scheme), [images])
    assert (smoothed(images) - expected).square().sum() < 0.01 * (plain(images) - expected).square().sum()
