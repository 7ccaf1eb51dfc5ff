"""Fake quantization and its gradients against formulas computed in NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.quantization import fake_quantize
from convnext_deploy.quantization.fake_quantize import FakeQuantize, quantize
from convnext_deploy.quantization.scheme import SCHEMES, TensorScheme

GRIDS = pytest.mark.parametrize(
    ("scheme", "zero_point"),
    [
        (TensorScheme(-128, 127, symmetric=True, per_channel=False), 0),
        (TensorScheme(-8, 7, symmetric=False, per_channel=False), 3),
        (TensorScheme(0, 15, symmetric=False, per_channel=False), 5),
    ],
    ids=["int8", "affine", "unsigned"],
)
PER_CHANNEL = TensorScheme(-8, 7, symmetric=True, per_channel=True)


def frozen(scheme: TensorScheme, scale: Tensor, zero_point: Tensor) -> FakeQuantize:
    quantizer = FakeQuantize(scheme, len(scale) if scale.ndim else None)
    quantizer.freeze(scale, zero_point)
    return quantizer


def noise(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def expected_gradients(
    x: NDArray[np.float64], scale: float, zero_point: int, scheme: TensorScheme, upstream: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Learned step size, one value at a time: the gradients to `x` and to the scale."""
    by_x, by_scale = np.zeros_like(x), 0.0
    for index in np.ndindex(x.shape):
        slope = float(upstream[index])
        ratio = float(x[index]) / scale
        integer = round(ratio) + zero_point
        if integer < scheme.quant_min:
            by_scale += slope * (scheme.quant_min - zero_point)
        elif integer > scheme.quant_max:
            by_scale += slope * (scheme.quant_max - zero_point)
        else:
            by_x[index] = slope
            by_scale += slope * (round(ratio) - ratio)
    return by_x, by_scale


@GRIDS
def test_fake_quantize_equals_dequantized_integers(scheme: TensorScheme, zero_point: int) -> None:
    quantizer = frozen(scheme, torch.tensor(0.07), torch.tensor(zero_point))
    x = noise(4, 50, scale=2.0)
    integers = quantize(x, quantizer.scale, quantizer.zero_point, scheme)
    assert torch.equal(quantizer(x), (integers - zero_point) * quantizer.scale)


@pytest.mark.parametrize("value", [0.07, 1e-6, 1.0, 3.14159, 1e4])
def test_freeze_keeps_the_scale_to_float32_precision(value: float) -> None:
    scheme = TensorScheme(-128, 127, symmetric=True, per_channel=False)
    quantizer = frozen(scheme, torch.tensor(value), torch.tensor(0))
    assert quantizer.scale.item() == pytest.approx(value, rel=2e-6)
    assert quantizer.zero_point.dtype == torch.int32


def test_fake_quantize_is_identity_when_disabled() -> None:
    quantizer = frozen(PER_CHANNEL, torch.tensor([0.1, 0.5]), torch.tensor([0, 0]))
    x = noise(2, 30)
    assert not torch.equal(quantizer(x), x)
    quantizer.enabled = False
    assert quantizer(x) is x


@GRIDS
def test_fake_quantize_gradients_equal_learned_step_size(scheme: TensorScheme, zero_point: int) -> None:
    quantizer = frozen(scheme, torch.tensor(0.02), torch.tensor(zero_point))
    x = noise(6, 40, scale=2.0).requires_grad_()
    upstream = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    quantizer(x).backward(upstream)
    scale = quantizer.scale.item()
    by_x, by_scale = expected_gradients(
        x.detach().double().numpy(), scale, zero_point, scheme, upstream.double().numpy()
    )
    assert 0 < np.count_nonzero(by_x) < x.numel(), "the example must have clipped and unclipped values"
    assert x.grad is not None
    assert torch.equal(x.grad, torch.from_numpy(by_x).float())
    assert quantizer.log2_scale.grad is not None
    # d scale / d log2(scale) = scale * ln 2
    assert quantizer.log2_scale.grad.item() == pytest.approx(by_scale * scale * np.log(2), rel=1e-3)


@pytest.mark.parametrize("shape", [(3, 40), (3, 2, 5, 5)])
def test_fake_quantize_gradients_are_per_channel_when_scales_are(shape: tuple[int, ...]) -> None:
    scales = torch.tensor([0.02, 0.2, 1.0])
    quantizer = frozen(PER_CHANNEL, scales, torch.zeros(3))
    x = noise(*shape).requires_grad_()
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    quantizer(x).backward(upstream)
    assert x.grad is not None
    assert quantizer.log2_scale.grad is not None
    for channel in range(3):
        scale = quantizer.scale[channel].item()
        by_x, by_scale = expected_gradients(
            x[channel].detach().double().numpy(), scale, 0, PER_CHANNEL, upstream[channel].double().numpy()
        )
        assert torch.equal(x.grad[channel], torch.from_numpy(by_x).float())
        expected = by_scale * scale * np.log(2)
        assert quantizer.log2_scale.grad[channel].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


AFFINE = TensorScheme(0, 255, symmetric=False, per_channel=False)


def lsq_plus(
    x: NDArray[np.float64], step: float, offset: float, scheme: TensorScheme, upstream: NDArray[np.float64]
) -> tuple[float, float]:
    """The gradients to step and offset of `round(clip((x - offset) / step)) * step + offset`, as arXiv 2004.09576 has them."""
    by_step = by_offset = 0.0
    for value, slope in zip(x.flat, upstream.flat, strict=True):
        position = (value - offset) / step
        if round(position) < scheme.quant_min:
            by_step += slope * scheme.quant_min
            by_offset += slope
        elif round(position) > scheme.quant_max:
            by_step += slope * scheme.quant_max
            by_offset += slope
        else:
            by_step += slope * (round(position) - position)
    return by_step, by_offset


@pytest.mark.parametrize("zero_point", [3, 17, 200])
def test_fake_quantize_gradients_of_asymmetric_grids_equal_lsq_plus(zero_point: int) -> None:
    quantizer = frozen(AFFINE, torch.tensor(0.01), torch.tensor(zero_point))
    x = noise(8, 60, scale=2.0)
    upstream = torch.randn(8, 60, generator=torch.Generator().manual_seed(1)) + 0.3
    quantizer(x).backward(upstream)
    scale = quantizer.scale.item()
    by_step, by_offset = lsq_plus(x.double().numpy(), scale, -scale * zero_point, AFFINE, upstream.double().numpy())
    assert quantizer.zero_point_shift is not None
    assert quantizer.zero_point_shift.grad is not None
    assert quantizer.log2_scale.grad is not None
    # offset = -scale * zero_point and zero_point = shift * 255 + constant
    assert by_offset != 0
    assert quantizer.zero_point_shift.grad.item() == pytest.approx(-scale * 255 * by_offset, rel=1e-4)
    # the derivative at a fixed zero point is that at a fixed offset, and what the offset then moves by
    found = quantizer.log2_scale.grad.item() / (scale * np.log(2))
    assert found == pytest.approx(by_step - zero_point * by_offset, rel=1e-3)


def test_fake_quantize_gradients_of_asymmetric_grids_are_per_channel_when_scales_are() -> None:
    scheme = TensorScheme(-8, 7, symmetric=False, per_channel=True)
    scales, zero_points = torch.tensor([0.02, 0.2, 0.05]), torch.tensor([-5, 0, 6])
    quantizer = frozen(scheme, scales, zero_points)
    x, upstream = noise(3, 4, 10), torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(1))
    quantizer(x).backward(upstream)
    assert quantizer.zero_point_shift is not None
    assert quantizer.zero_point_shift.grad is not None
    for channel, (scale, zero_point) in enumerate(zip(quantizer.scale.tolist(), zero_points.tolist(), strict=True)):
        values, slopes = x[channel].double().numpy(), upstream[channel].double().numpy()
        _, by_offset = lsq_plus(values, scale, -scale * zero_point, scheme, slopes)
        assert quantizer.zero_point_shift.grad[channel].item() == pytest.approx(-scale * 15 * by_offset, rel=1e-4)


def test_symmetric_grids_learn_no_zero_point() -> None:
    quantizer = frozen(PER_CHANNEL, torch.tensor([0.1]), torch.tensor([0]))
    assert {name for name, _ in quantizer.named_parameters()} == {"log2_scale"}
    assert quantizer.state_dict().keys() == {"log2_scale", "zero_point"}
    scale, zero_point = quantizer.qparams()
    assert torch.equal(scale, quantizer.scale)
    assert torch.equal(zero_point, torch.tensor([0], dtype=torch.int32))
    affine = frozen(AFFINE, torch.tensor(0.1), torch.tensor(7))
    assert affine.state_dict().keys() == {"log2_scale", "zero_point", "zero_point_shift"}


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.0, 7), (0.5 / 256, 7), (1.0 / 255, 8), (0.5, 134), (-1, 0), (2, 255)]
)
def test_qparams_round_a_learned_zero_point_into_the_grid(shift: float, expected: int) -> None:
    quantizer = frozen(AFFINE, torch.tensor(0.1), torch.tensor(7))
    assert quantizer.zero_point_shift is not None
    with torch.no_grad():
        quantizer.zero_point_shift.fill_(shift)
    _, zero_point = quantizer.qparams()
    assert zero_point.item() == expected
    x = noise(300, scale=20.0)
    integers = quantize(x, quantizer.scale, torch.tensor(expected), AFFINE)
    assert torch.equal(quantizer(x), (integers - expected) * quantizer.scale)
    quantizer.freeze(torch.tensor(0.1), torch.tensor(9))
    assert quantizer.qparams()[1].item() == 9, "freeze forgets what was learned"


@pytest.mark.parametrize(
    ("shift", "x", "moves"), [(-0.2, -1.0, True), (-0.2, 1e3, False), (1.2, -1e3, False), (1.2, 1.0, True)]
)
def test_zero_point_beyond_the_grid_comes_back_but_goes_no_further(shift: float, x: float, moves: bool) -> None:
    quantizer = frozen(AFFINE, torch.tensor(0.1), torch.tensor(0))
    assert quantizer.zero_point_shift is not None
    with torch.no_grad():
        quantizer.zero_point_shift.fill_(shift)
    (quantizer(torch.tensor([x])) - x).square().sum().backward()
    assert quantizer.zero_point_shift.grad is not None
    gradient = quantizer.zero_point_shift.grad.item()
    assert (gradient != 0) == moves
    assert not moves or (gradient < 0) == (shift < 0), "descent takes it towards the grid"


def test_fake_quantize_learns_scale_and_zero_point_of_one_sided_values() -> None:
    scheme = TensorScheme(0, 15, symmetric=False, per_channel=False)
    x = torch.nn.functional.gelu(noise(2000))
    errors = {}
    for exponent in np.linspace(-4, 0, 41):
        for zero_point in range(16):
            candidate = frozen(scheme, torch.tensor(2.0**exponent), torch.tensor(zero_point))
            errors[exponent, zero_point] = (candidate(x) - x).square().mean().item()
    quantizer = frozen(scheme, torch.tensor(0.5), torch.tensor(8))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert quantizer.qparams()[1].item() < 4
    assert (quantizer(x) - x).square().mean().item() <= 1.1 * min(errors.values())


def test_fake_quantize_scale_gradient_of_clipped_values_is_the_grid_end() -> None:
    quantizer = frozen(PER_CHANNEL, torch.tensor([1.0]), torch.tensor([0]))
    for value, slope in ((100.0, 7.0), (-100.0, -8.0), (2.25, -0.25), (2.75, 0.25), (-3.0, 0.0)):
        quantizer.log2_scale.grad = None
        quantizer(torch.tensor([[value]])).sum().backward()
        assert quantizer.log2_scale.grad is not None
        assert quantizer.log2_scale.grad.item() == pytest.approx(slope * np.log(2), abs=1e-5)


def test_scale_stays_positive_and_differentiable_when_its_logarithm_moves() -> None:
    quantizer = frozen(PER_CHANNEL, torch.tensor([0.25, 2.0]), torch.tensor([0, 0]))
    assert quantizer.log2_scale.tolist() == [-2.0, 1.0]
    with torch.no_grad():
        quantizer.log2_scale.sub_(30)
    assert quantizer.scale.min() > 0
    quantizer.scale.sum().backward()
    assert quantizer.log2_scale.grad is not None
    torch.testing.assert_close(quantizer.log2_scale.grad, quantizer.scale.detach() * np.log(2))


def test_fake_quantize_learns_the_scale_with_least_error() -> None:
    scheme = TensorScheme(-8, 7, symmetric=True, per_channel=False)
    x = noise(2000)
    errors = {}
    for exponent in np.linspace(-4, 0, 81):
        candidate = frozen(scheme, torch.tensor(2.0**exponent), torch.tensor(0))
        errors[exponent] = (candidate(x) - x).square().mean().item()
    quantizer = frozen(scheme, torch.tensor(1.0), torch.tensor(0))
    optimizer = torch.optim.Adam([quantizer.log2_scale], lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    assert (quantizer(x) - x).square().mean().item() <= 1.05 * min(errors.values())


def test_fake_quantize_computes_in_float32_when_input_is_bfloat16() -> None:
    scheme = TensorScheme(-128, 127, symmetric=True, per_channel=False)
    quantizer = frozen(scheme, torch.tensor(0.013), torch.tensor(0))
    x = noise(100).bfloat16().requires_grad_()
    found = quantizer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, quantizer(x.float()))
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_fake_quantize_observes_and_passes_inputs_unchanged_while_it_has_an_observer() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def observe(self, x: Tensor) -> None:
            self.seen.append(x)

        def value_range(self) -> tuple[float, float]:
            return 0.0, 0.0

    quantizer = frozen(PER_CHANNEL, torch.tensor([0.5]), torch.tensor([0]))
    quantizer.observer = recorder = Recorder()
    x = noise(1, 8).requires_grad_()
    assert quantizer(x) is x
    assert torch.equal(recorder.seen[0], x)
    assert not recorder.seen[0].requires_grad


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "tensorrt-fp8"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 1, 0, 2)])
def test_parts_that_fit_the_cache_give_the_bits_of_the_whole(
    target: str, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = SCHEMES[target].activation
    for scheme in (grid, dataclasses.replace(grid, per_channel=True, symmetric=True)):
        x, upstream = noise(5, 6, 7, 8, scale=3.0).permute(order), noise(5, 6, 7, 8).flip(0).permute(order)
        channels = x.shape[0]
        scale = torch.linspace(0.01, 0.03, channels) if scheme.per_channel else torch.tensor(0.02)
        found = []
        for values_at_once in (1 << 30, 100):
            monkeypatch.setattr(fake_quantize, "_VALUES_IN_CACHE", values_at_once)
            quantizer = frozen(scheme, scale, torch.full_like(scale, 3 if scheme.quant_min == 0 else 0))
            leaf = x.detach().requires_grad_()
            output = quantizer(leaf)
            output.backward(upstream)
            shift = quantizer.zero_point_shift
            found.append([output.detach(), leaf.grad, quantizer.log2_scale.grad, None if shift is None else shift.grad])
        for whole, parts in zip(*found, strict=True):
            assert (whole is None and parts is None) or torch.equal(whole, parts)
