"""GPTQ: the integers of the paper's own algorithm, less error than rounding to nearest, and nothing else changed."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization import bias_correction, gptq
from convnext_deploy.quantization.bias_correction import correct_biases
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.fake_quantize import FakeQuantize
from convnext_deploy.quantization.gptq import DAMPING, InputMoments, adjust_blocks, round_block, round_weight
from convnext_deploy.quantization.prepare import QuantizedLayer, prepare, quantized_layers, quantizers_disabled
from convnext_deploy.quantization.scheme import SCHEMES, QuantizationScheme, TensorScheme, resolve_scheme
from tests.shared import slow_except
from tests.weights import fill

Array = NDArray[np.float64]
U8 = TensorScheme(0, 255, symmetric=False, per_channel=False)


def scheme_of(bits: int = 4, *, per_channel: bool = True, sites: tuple[str, ...] = ("*",)) -> QuantizationScheme:
    half = 1 << (bits - 1)
    weight = TensorScheme(-half, half - 1, symmetric=True, per_channel=per_channel)
    return QuantizationScheme("test", tuple((site, "int8") for site in sites), U8, weight)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(count: int = 64, channels: int = 10) -> Tensor:
    """Return rows whose channels have much in common, and of which some are larger than others."""
    return (1 + noise(count, 1, seed=1) + 0.5 * noise(count, channels, seed=2)) * torch.linspace(0.3, 2, channels)


def small_layer(
    x: Tensor, layer: nn.Linear | nn.Conv2d, scheme: QuantizationScheme
) -> tuple[nn.Module, QuantizedLayer]:
    """Return a layer with random weights, calibrated on `x`, as a block."""
    with torch.no_grad():
        layer.weight.copy_(noise(*layer.weight.shape, seed=3))
    block = prepare(nn.Sequential(layer), scheme)
    calibrate(block, [x], "minmax")
    ((_, quantized),) = quantized_layers(block)
    return block, quantized


def moments_of(layer: QuantizedLayer, x: Tensor) -> InputMoments:
    moments = InputMoments(layer, len(x))
    moments.observe(layer.input_quantizer(x))
    return moments


def integers_of(layer: QuantizedLayer, weight: Tensor) -> Array:
    scale = layer.weight_quantizer.scale.detach().double()
    return (weight.detach().double() / scale.view(-1, *[1] * (weight.ndim - 1))).numpy()


def algorithm_of_the_paper(weight: Array, hessian: Array, least: int, most: int) -> Array:
    """GPTQ's algorithm 1 with act-order, on the inverse of the Hessian, one column at a time; the grid's step is 1."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    hessian = hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    left, found = weight[:, order].copy(), np.empty_like(weight)
    for i, place in enumerate(order):
        found[:, place] = np.clip(np.round(left[:, i]), least, most)
        error = (left[:, i] - found[:, place]) / upper[i, i]
        left[:, i:] -= np.outer(error, upper[i, i:])
    return found


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("inputs", [10, 300])  # in one part, and in several
@torch.no_grad()
def test_integers_are_those_of_the_paper(inputs: int, per_channel: bool) -> None:
    x = correlated(2 * inputs, inputs)
    _, layer = small_layer(x, nn.Linear(inputs, 7), scheme_of(per_channel=per_channel))
    hessian = moments_of(layer, x).hessian()
    seen = layer.input_quantizer(x).detach().double().numpy()
    np.testing.assert_allclose(hessian[0], seen.T @ seen / len(seen), rtol=1e-5, atol=1e-5)
    expected = algorithm_of_the_paper(integers_of(layer, layer.weight), hessian[0].numpy().copy(), -8, 7)
    found = integers_of(layer, round_weight(layer, hessian))
    np.testing.assert_allclose(found, found.round(), atol=1e-5)
    # where two integers are nearly as good, rounding of the arithmetic chooses
    assert (found.round() != expected).mean() < 0.002
    assert (found.round() != integers_of(layer, layer.weight).round().clip(-8, 7)).mean() > 0.1


@torch.no_grad()
def test_output_is_nearer_to_the_best_of_all_roundings_than_to_that_of_the_nearest() -> None:
    x = correlated()
    block, layer = small_layer(x, nn.Linear(10, 4, bias=False), scheme_of())
    seen = layer.input_quantizer(x).double().numpy()
    weight = integers_of(layer, layer.weight).clip(-7.99, 6.99)
    ups = np.array(list(itertools.product((0, 1), repeat=10)))
    best = nearest = 0.0
    for row in weight:
        best += np.square(seen @ (np.floor(row) + ups - row).T).mean(0).min()
        nearest += np.square(seen @ (row.round() - row)).mean()
    round_block(block, x)
    found = np.square(seen @ (integers_of(layer, layer.weight_quantizer(layer.weight)) - weight).T).mean(0).sum()
    assert found - best < 0.2 * (nearest - best)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 2, stride=2),
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
        nn.Conv2d(6, 6, 7, padding=3, groups=6),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
    ],
    ids=["patches", "padded", "depthwise", "groups"],
)
@torch.no_grad()
def test_moments_of_a_convolution_tell_what_a_change_of_its_weight_does(
    layer: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "_ROWS_PER_INPUT", 1000)  # all that there are
    x = 1 + noise(5, 1, 12, 12, seed=4).cumsum(2) / 3 + 0.5 * noise(5, layer.in_channels, 12, 12, seed=5)
    block, quantized = small_layer(x, layer, scheme_of())
    change = noise(*layer.weight.shape, seed=6)
    moments = moments_of(quantized, x)
    output = F.conv2d(
        quantized.input_quantizer(x), change, None, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    rows = change.double().reshape(layer.groups, -1, change[0].numel())
    found = ((rows @ moments.hessian()) * rows).sum(2).flatten()
    np.testing.assert_allclose(found, output.square().mean((0, 2, 3)), rtol=1e-4)
    before = float(
        (
            block(x) - F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        ).var()
    )
    with quantizers_disabled(block):
        wanted = block(x)
    round_block(block, x)
    assert float((block(x) - wanted).var()) < 0.9 * before


@torch.no_grad()
def test_inputs_that_are_always_0_leave_their_weights_to_the_nearest() -> None:
    x = correlated()
    x[:, 3] = x[:, 7] = 0
    _, layer = small_layer(x, nn.Linear(10, 5), scheme_of())
    nearest = integers_of(layer, layer.weight_quantizer(layer.weight))
    found = integers_of(layer, round_weight(layer, moments_of(layer, x).hessian()))
    np.testing.assert_allclose(found[:, [3, 7]], nearest[:, [3, 7]], atol=1e-4)
    assert (np.abs(found - nearest) > 0.5).any()
    found = integers_of(layer, round_weight(layer, moments_of(layer, 0 * x).hessian()))
    np.testing.assert_allclose(found, nearest, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
@torch.no_grad()
def test_fewer_rows_than_inputs_are_enough(count: int) -> None:
    x = correlated(count)
    block, layer = small_layer(x, nn.Linear(10, 5, bias=False), scheme_of())
    expected = F.linear(layer.input_quantizer(x), layer.weight)
    before = (F.linear(layer.input_quantizer(x), layer.weight_quantizer(layer.weight)) - expected).square().mean()
    round_block(block, x)
    after = (block(x) - expected).square().mean()
    assert after < 0.5 * before
    assert layer.weight.isfinite().all()


def network_of(target: str) -> ConvNeXt:
    with torch.random.fork_rng([]):
        network = ConvNeXt((1, 1, 1, 1), (8, 8, 12, 12), num_classes=3, layer_scale_init=0.5).eval()
    fill(network)
    scheme = resolve_scheme(target)
    coarse = TensorScheme(-8, 7, symmetric=True, per_channel=True)
    coarse = scheme.weight if scheme.weight.floating else coarse
    prepare(network, QuantizationScheme(target, scheme.sites, scheme.activation, coarse, output=scheme.output))
    calibrate(network, [noise(32, 3, 32, 32, seed=1)])
    return network


@pytest.mark.parametrize("target", slow_except(("onnxruntime",), tuple(SCHEMES)))
@torch.no_grad()
def test_network_is_nearer_to_the_float_one_and_only_weights_and_biases_move(target: str) -> None:
    network = network_of(target)
    images, others = noise(32, 3, 32, 32, seed=1), noise(32, 3, 32, 32, seed=2)
    with quantizers_disabled(network):
        expected = network(others)
    corrected = copy.deepcopy(network)
    assert correct_biases(corrected.trunk(), images) == 32
    before = copy.deepcopy(network.state_dict())
    advanced: list[None] = []
    assert adjust_blocks(network.trunk(), images, lambda: advanced.append(None), correct_on=32) == 32
    assert len(advanced) == 8
    after = (network(others) - expected).square().mean()
    assert after < 0.9 * (corrected(others) - expected).square().mean()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    layers = dict(quantized_layers(network))
    assert changed == {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    for name, layer in layers.items():
        old = before[f"{name}.weight"]
        moved = layer.weight != old
        assert 0.02 < moved.double().mean() < 0.8, name  # the others, which go to the nearest, are as they were
        on_grid = layer.weight_quantizer(layer.weight)
        torch.testing.assert_close(layer.weight[moved], on_grid[moved], rtol=1e-5, atol=1e-7)
    assert all(not module._forward_pre_hooks for module in network.modules())
    assert all(q.enabled and q.observer is None for q in network.modules() if isinstance(q, FakeQuantize))


@torch.no_grad()
def test_late_blocks_see_all_images_where_the_first_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = network_of("tensorrt"), noise(32, 3, 32, 32, seed=1)
    plain = copy.deepcopy(network)
    seen: list[tuple[int, int]] = []
    round_of = bias_correction.run_block

    def watch(block: nn.Module, floats: Tensor, arriving: Tensor, expected: Tensor) -> None:
        seen.append((len(floats), len(arriving)))
        place = next(i for i, each in enumerate(network.trunk()) if each is block)
        behind, in_float = images[: len(floats)], images[: len(floats)]
        for each, source in zip(network.trunk()[:place], plain.trunk()[:place], strict=True):
            behind, in_float = round_of(each, behind, quantized=True), round_of(source, in_float, quantized=False)
        torch.testing.assert_close(arriving, behind, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(floats, in_float, rtol=1e-4, atol=1e-4)
        for _, layer in quantized_layers(block):
            layer.weight += 0.01

    monkeypatch.setattr(
        bias_correction, "MOST_BYTES", 5 * 3 * 32 * 32 * 4
    )  # the images; later there are 8 * 8 * 8 values
    assert bias_correction.walk(network.trunk(), images, watch) == 30
    assert seen == [*[(30, 30)] * 2, *[(32, 32)] * 5]
