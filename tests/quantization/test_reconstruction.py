"""Learned rounding: its formulas, that it beats rounding to nearest, and that it leaves everything else as it was."""

from __future__ import annotations

import copy
import itertools
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization import adaround
from convnext_deploy.quantization.adaround import LearnedRounding, RoundingSettings, reconstruct
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.fake_quantize import FakeQuantize
from convnext_deploy.quantization.prepare import QuantizedLayer, prepare, quantized_layers, quantizers_disabled
from convnext_deploy.quantization.scheme import QuantizationScheme, TensorScheme
from tests.models.conftest import assert_equal_states
from tests.weights import fill

W3 = TensorScheme(-4, 3, symmetric=True, per_channel=True)
Array = NDArray[np.float64]
FAST = RoundingSettings(learning_rate=0.1, regularization=1.0)  # decides within few steps
# Fractions that rounding to nearest all takes to the same side; where inputs are alike, some had better go to the other.
FRACTIONS = (
    (0, 0.4, 0.35, 0.4, 0.3, 0.41, 0.3, 0.45, 0.35, 0.44),
    (0, 0.6, 0.62, 0.58, 0.7, 0.6, 0.6, 0.55, 0.65, 0.65),
)


def scheme_of(activation_bits: int, weight_bits: int, sites: tuple[str, ...] = ("*",)) -> QuantizationScheme:
    half = 1 << (weight_bits - 1)
    activation = TensorScheme(0, (1 << activation_bits) - 1, symmetric=False, per_channel=False)
    weight = TensorScheme(-half, half - 1, symmetric=True, per_channel=True)
    return QuantizationScheme("test", tuple((site, "int8") for site in sites), activation, weight)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(count: int = 64, channels: int = 10) -> Tensor:
    """Return rows whose channels are nearly the same, so that errors of rounding add up instead of cancelling."""
    return 1 + noise(count, 1, seed=1) + 0.1 * noise(count, channels, seed=2)


def linear_weight(bits: int = 4) -> Tensor:
    """Return `(2, 10)` weights whose scales are 1."""
    largest = (1 << (bits - 1)) - 1
    whole = np.random.default_rng(0).integers(-largest + 1, largest - 1, (2, 10))
    whole[:, 0] = largest
    return torch.tensor(whole + np.array(FRACTIONS), dtype=torch.float32)


def small_block(x: Tensor, bits: int = 4, weight: Tensor | None = None) -> tuple[nn.Sequential, QuantizedLayer]:
    """Return one linear layer, calibrated on `x`, as a block."""
    weight = linear_weight(bits) if weight is None else weight
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(noise(len(weight), seed=4))
    block = prepare(nn.Sequential(layer), scheme_of(bits, bits))
    calibrate(block, [x], "minmax")
    ((_, quantized),) = quantized_layers(block)
    return block, quantized


def rounding_of(weight: Tensor, scheme: TensorScheme = W3) -> LearnedRounding:
    quantizer = FakeQuantize(scheme, len(weight))
    quantizer.freeze(weight.abs().flatten(1).amax(1) / scheme.quant_max, torch.zeros(len(weight)))
    return LearnedRounding(quantizer, weight)


@torch.no_grad()
def squared_error(block: nn.Module, x: Tensor, expected: Tensor) -> float:
    return float((block(x) - expected).double().square().mean())


def sigmoid(v: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-v)))


@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 2, 2)])
def test_rounding_starts_at_the_float_weight(shape: tuple[int, ...]) -> None:
    weight = noise(*shape)
    rounding = rounding_of(weight)
    assert rounding.v.shape == weight.shape
    assert rounding.v.isfinite().all()
    torch.testing.assert_close(rounding(weight), weight, rtol=0, atol=1e-6)
    # also where a weight is a whole number of steps, at which the logit has its ends
    whole = rounding.floor * rounding.scale.view(-1, *[1] * (weight.ndim - 1))
    torch.testing.assert_close(rounding_of(whole)(whole), whole, rtol=0, atol=1e-6)


def test_share_is_equation_23() -> None:
    rounding = rounding_of(noise(2, 50))
    v = np.linspace(-6, 6, 100).reshape(2, 50)
    rounding.v.data = torch.tensor(v, dtype=torch.float32)
    expected = np.minimum(np.maximum(sigmoid(v) * 1.2 - 0.1, 0), 1)
    assert (expected == 0).any() and (expected == 1).any()  # noqa: PT018  (both ends are reached)
    np.testing.assert_allclose(rounding.h().detach(), expected, atol=1e-6)
    rounding.final = True
    np.testing.assert_array_equal(rounding.h().detach(), v >= 0)


@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_regularizer_is_equation_24_and_so_is_its_gradient(beta: float) -> None:
    rounding = rounding_of(noise(2, 50))
    v = np.linspace(-3, 3, 100).reshape(2, 50)
    rounding.v.data = torch.tensor(v, dtype=torch.float32)
    h = np.clip(sigmoid(v) * 1.2 - 0.1, 0, 1)
    loss = rounding.undecided(beta)
    assert loss.item() == pytest.approx(np.mean(1 - np.abs(2 * h - 1) ** beta), rel=1e-5)
    loss.backward()
    slope = np.where((h > 0) & (h < 1), 1.2 * sigmoid(v) * (1 - sigmoid(v)), 0)
    expected = -beta * np.abs(2 * h - 1) ** (beta - 1) * np.sign(2 * h - 1) * 2 * slope / v.size
    assert rounding.v.grad is not None
    np.testing.assert_allclose(rounding.v.grad, expected, atol=1e-6)


def test_regularizer_is_0_when_all_is_decided_and_1_when_nothing_is() -> None:
    rounding = rounding_of(noise(2, 6))
    rounding.v.data = 50 * noise(2, 6, seed=1).sign()
    assert rounding.undecided(2.0).item() == 0
    rounding.v.data.zero_()
    assert rounding.undecided(2.0).item() == 1


def test_weight_outside_the_grid_stays_inside() -> None:
    weight = torch.tensor([[5.0, -9.0, 2.5, 3.4, -4.2]])
    quantizer = FakeQuantize(W3, 1)
    quantizer.freeze(torch.ones(1), torch.zeros(1))
    rounding = LearnedRounding(quantizer, weight)
    assert rounding(weight).tolist()[0] == pytest.approx([3, -4, 2.5, 3, -4])
    rounding.final = True
    assert rounding(weight).tolist() == [[3, -4, 3, 3, -4]]


def test_learned_rounding_ends_at_whole_integers_next_to_the_weight() -> None:
    x = correlated()
    block, layer = small_block(x)
    steps = layer.weight.detach().numpy() / layer.weight_quantizer.scale.detach().numpy()[:, None]
    assert reconstruct([block], x, FAST) == 1
    found = layer.weight.detach().numpy() / layer.weight_quantizer.scale.detach().numpy()[:, None]
    integers = found.round()
    np.testing.assert_allclose(found, integers, atol=1e-5)
    assert (np.abs(integers - steps) < 1).all()
    assert (integers != steps.round()).any()
    # the layer computes with just these integers
    torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bits", "settings", "share"), [(4, FAST, 0.15), (8, FAST, 0.5), (8, RoundingSettings(), 0.9)])
@torch.no_grad()
def test_learned_rounding_is_nearer_to_the_best_of_all_roundings(
    bits: int, settings: RoundingSettings, share: float
) -> None:
    x = correlated()
    block, layer = small_block(x, bits)
    with quantizers_disabled(block):
        expected = block(x)
    step, zero = (qparam.item() for qparam in layer.input_quantizer.qparams())
    exact = x.double().numpy()
    seen = ((np.round(exact / step) + zero).clip(0, 2**bits - 1) - zero) * step
    assert reconstruct([block], x, settings) == 1
    learned = squared_error(block, x, expected)

    best = nearest = 0.0
    for row in linear_weight(bits).double().numpy():  # the scale is 1
        ups = np.array(list(itertools.product((0, 1), repeat=len(row))))
        errors = np.square(seen @ (np.floor(row) + ups).T - (exact @ row)[:, None]).mean(0)
        best += errors.min() / 2
        nearest += np.square(seen @ np.round(row) - exact @ row).mean() / 2
    assert best < 0.2 * nearest, "the inputs are such that rounding to nearest is bad"
    assert learned - best < share * (nearest - best)


@torch.no_grad()
def test_blocks_that_are_said_to_be_better_are_better_and_the_others_untouched() -> None:
    with torch.random.fork_rng([]):
        network = ConvNeXt((1, 1, 1, 1), (8, 8, 12, 12), num_classes=3, layer_scale_init=0.5).eval()
    fill(network)
    prepare(network, scheme_of(8, 4, ("stages.*.pwconv?", "downsample_layers.[12].1")))
    images, others = noise(32, 3, 32, 32, seed=1), noise(32, 3, 32, 32, seed=2)
    reference = nn.Sequential(*copy.deepcopy(network).trunk())
    for module in reference.modules():
        if isinstance(module, FakeQuantize):
            module.enabled = False
    calibrate(network, [images], "minmax")
    trunk = nn.Sequential(*network.trunk())
    before = copy.deepcopy(trunk.state_dict())
    expected = reference(others)
    nearest = squared_error(trunk, others, expected)
    advanced: list[None] = []
    improved = reconstruct(network.trunk(), images, replace(FAST, steps=60), advance=lambda: advanced.append(None))
    changed = {key.split(".")[0] for key, value in trunk.state_dict().items() if not torch.equal(value, before[key])}
    assert 4 <= improved == len(changed) <= 6
    assert not changed & {"0", "6"}  # stem and last downsampling layer are in float
    assert len(advanced) == len(network.trunk()) == 8
    assert squared_error(trunk, others, expected) < 0.7 * nearest
    # only weights on their grids and scales of inputs have moved
    moved = {key for key, value in trunk.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".")[-2] + "." + key.split(".")[-1] for key in moved} <= {
        "pwconv1.weight",
        "pwconv2.weight",
        "1.weight",
        "input_quantizer.log2_scale",
    }
    for _, layer in quantized_layers(nn.Sequential(*(trunk[int(name)] for name in changed))):
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=1e-6, atol=1e-7)


def test_quantizers_and_flags_are_those_of_before() -> None:
    x = correlated()
    block, layer = small_block(x)
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    layer.input_quantizer.log2_scale.requires_grad_(False)
    modules = [id(module) for module in block.modules()]
    parameters = {name: (id(value), value.requires_grad) for name, value in block.named_parameters()}
    assert reconstruct([block], x, replace(FAST, steps=100)) == 1
    assert [id(module) for module in block.modules()] == modules
    assert {name: (id(value), value.requires_grad) for name, value in block.named_parameters()} == parameters
    assert all(parameter.is_leaf for parameter in block.parameters())
    assert all(q.enabled and q.observer is None for q in block.modules() if isinstance(q, FakeQuantize))
    with torch.no_grad(), quantizers_disabled(block):
        assert torch.equal(block(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_same_seed_learns_the_same() -> None:
    x = correlated()
    states = []
    for seed, unrelated in ((0, 0), (0, 1), (1, 0)):
        block, _ = small_block(x)
        with torch.random.fork_rng([]):
            torch.manual_seed(unrelated)
            assert reconstruct([block], x, replace(FAST, batch_size=8), seed=seed) == 1
        states.append(block.state_dict())
    assert_equal_states(states[0], states[1])
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("settings", "deadline"),
    [
        (RoundingSettings(steps=0), math.inf),  # every weight goes to the nearest: as good as before and not better
        (RoundingSettings(steps=30, learning_rate=1e3), math.inf),  # worse
        (FAST, time.monotonic() - 1),
    ],
    ids=["equal", "worse", "late"],
)
def test_nothing_changes_when_nothing_is_gained(settings: RoundingSettings, deadline: float) -> None:
    x = correlated()
    block, layer = small_block(x)
    before = copy.deepcopy(block.state_dict())
    advanced: list[None] = []
    blocks = [block, nn.ReLU()]
    assert reconstruct(blocks, x, settings, deadline=deadline, advance=lambda: advanced.append(None)) == 0
    assert_equal_states(block.state_dict(), before)
    assert len(advanced) == 2
    assert all(parameter.requires_grad for parameter in block.parameters())
    assert isinstance(layer.weight_quantizer, FakeQuantize)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_images_are_enough_and_one_changes_nothing(count: int) -> None:
    x = correlated().abs()[:count]
    block, _ = small_block(x)
    before = copy.deepcopy(block.state_dict())
    improved = reconstruct([block], x, FAST)
    assert improved == (count > 1)  # of one image, none would be left to judge
    changed = any(not torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert changed == (count > 1)


def test_block_keeps_what_it_learned_only_if_other_images_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where all channels are alike, some weights had better go up; where each is alone, none.
    weight = torch.tensor([[7.0, 1.47, 2.33, 0.45, -2.65, 3.4]])
    alike = torch.ones(40, 6) * torch.linspace(0.5, 1, 40)[:, None]
    alone = torch.eye(6).repeat(7, 1)[:40]
    judges = torch.arange(40) % 4 == 3  # as documented: every fourth
    learned_from = []

    def learn(block: nn.Module, x: Tensor, *rest: Any) -> None:
        learned_from.append(x)
        learn_as_before(block, x, *rest)

    learn_as_before = adaround._learn
    monkeypatch.setattr(adaround, "_learn", learn)
    for x, is_better in ((alike, True), (torch.where(judges[:, None], alone, alike), False)):
        block, layer = small_block(x, weight=weight)
        assert reconstruct([block], x, FAST) == is_better
        assert torch.equal(layer.weight.round(), weight.round()) != is_better
        assert torch.equal(learned_from[-1], x[~judges])
