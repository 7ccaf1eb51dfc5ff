"""Properties of the integer grids and of quantizing onto them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.quantization.fake_quantize import quantize
from convnext_deploy.quantization.qparams import choose_qparams, weight_qparams
from convnext_deploy.quantization.scheme import SCHEMES, SMALLEST_SCALE, TensorScheme

SYMMETRIC = TensorScheme(-128, 127, symmetric=True, per_channel=False)
AFFINE = TensorScheme(-128, 127, symmetric=False, per_channel=False)
UNSIGNED = TensorScheme(0, 255, symmetric=False, per_channel=False)
SYMMETRIC_UNSIGNED = TensorScheme(0, 255, symmetric=True, per_channel=False)
NARROW = TensorScheme(-7, 7, symmetric=True, per_channel=False)
GRIDS = pytest.mark.parametrize(
    "scheme",
    [SYMMETRIC, AFFINE, UNSIGNED, SYMMETRIC_UNSIGNED, NARROW],
    ids=["symmetric", "affine", "unsigned", "symmetric-unsigned", "narrow"],
)
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)

limits = st.floats(-1e6, 1e6, width=32)
ranges = st.tuples(limits, limits).map(lambda ends: (min(ends), max(ends)))
values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20)


def grid(low: float, high: float, scheme: TensorScheme) -> tuple[torch.Tensor, torch.Tensor]:
    return choose_qparams(torch.tensor(low), torch.tensor(high), scheme)


@GRIDS
@PROPERTY
@given(ends=ranges)
def test_choose_qparams_covers_the_range_and_represents_zero(scheme: TensorScheme, ends: tuple[float, float]) -> None:
    low, high = ends
    scale, zero_point = grid(low, high, scheme)
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int32
    assert scale.item() >= np.float32(SMALLEST_SCALE)
    assert scheme.quant_min <= zero_point.item() <= scheme.quant_max
    assert zero_point.item() == (128 if scheme.dtype == "uint8" else 0) or not scheme.symmetric
    least = scale.item() * (scheme.quant_min - zero_point.item())
    greatest = scale.item() * (scheme.quant_max - zero_point.item())
    half_step = 0.5 * scale.item() * (1 + 1e-4)
    assert least <= 0 <= greatest
    assert least - half_step <= low
    assert high <= greatest + half_step
    if scheme.symmetric:
        assert max(-low, high) <= greatest * (1 + 1e-6)


@GRIDS
@PROPERTY
@given(ends=ranges)
def test_choose_qparams_grid_is_no_wider_than_needed(scheme: TensorScheme, ends: tuple[float, float]) -> None:
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale, _ = grid(*ends, scheme)
    needed = (
        max(-low, high) / (scheme.quant_max - (128 if scheme.dtype == "uint8" else 0))
        if scheme.symmetric
        else (high - low) / (scheme.quant_max - scheme.quant_min)
    )
    assert scale.item() == pytest.approx(max(needed, SMALLEST_SCALE), rel=1e-6)


@GRIDS
@PROPERTY
@given(x=values, ends=ranges)
def test_quantize_stays_on_the_grid_and_errs_by_half_a_step_at_most(
    scheme: TensorScheme, x: list[float], ends: tuple[float, float]
) -> None:
    scale, zero_point = grid(*ends, scheme)
    tensor = torch.tensor(x)
    integers = quantize(tensor, scale, zero_point, scheme)
    assert torch.equal(integers, integers.round())
    assert integers.min() >= scheme.quant_min
    assert integers.max() <= scheme.quant_max
    least, greatest = (scale * (end - zero_point) for end in (scheme.quant_min, scheme.quant_max))
    nearest = tensor.clamp(least, greatest).double()
    error = ((integers - zero_point).double() * scale.double() - nearest).abs()
    assert (error <= 0.5 * scale.item() + 1e-6 * nearest.abs()).all()


@GRIDS
@PROPERTY
@given(ends=ranges)
def test_quantize_gives_back_every_point_of_the_grid(scheme: TensorScheme, ends: tuple[float, float]) -> None:
    scale, zero_point = grid(*ends, scheme)
    integers = torch.arange(scheme.quant_min, scheme.quant_max + 1)
    assert torch.equal(quantize(scale * (integers - zero_point), scale, zero_point, scheme), integers.float())


@GRIDS
@PROPERTY
@given(x=values, ends=ranges)
def test_quantize_keeps_order_and_zero(scheme: TensorScheme, x: list[float], ends: tuple[float, float]) -> None:
    scale, zero_point = grid(*ends, scheme)
    integers = quantize(torch.tensor(sorted(x)), scale, zero_point, scheme)
    assert (integers.diff() >= 0).all()
    assert quantize(torch.zeros(1), scale, zero_point, scheme).item() == zero_point.item()


def test_quantize_rounds_half_to_even() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5])
    found = quantize(x * 0.25, torch.tensor(0.25), torch.tensor(0), SYMMETRIC)
    assert found.tolist() == [-2, -2, 0, 0, 2, 2, 126]
    # As in ONNX, the quotient is rounded before the zero point is added.
    found = quantize(x[:6] * 0.25, torch.tensor(0.25), torch.tensor(3), AFFINE)
    assert found.tolist() == [1, 1, 3, 3, 5, 5]


def test_quantize_saturates() -> None:
    x = torch.tensor([-1e30, -128.6, -128.4, 127.4, 127.6, 1e30])
    assert quantize(x, torch.tensor(1.0), torch.tensor(0), SYMMETRIC).tolist() == [-128, -128, -128, 127, 127, 127]
    assert quantize(x, torch.tensor(1.0), torch.tensor(100), AFFINE).tolist() == [-128, -29, -28, 127, 127, 127]
    assert quantize(x, torch.tensor(1.0), torch.tensor(10), UNSIGNED).tolist() == [0, 0, 0, 137, 138, 255]


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 4, 4)])
def test_quantize_uses_one_scale_per_output_channel(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale, zero_point = torch.tensor([0.01, 0.1, 1.0]), torch.tensor([0, 5, -3])
    found = quantize(x, scale, zero_point, AFFINE)
    for channel in range(3):
        alone = quantize(x[channel], scale[channel], zero_point[channel], AFFINE)
        assert torch.equal(found[channel], alone)


def test_choose_qparams_works_per_channel() -> None:
    low, high = torch.tensor([-1.0, 0.0, 0.5, -127.0]), torch.tensor([0.5, 254.0, 2.0, 127.0])
    scale, zero_point = choose_qparams(low, high, SYMMETRIC)
    torch.testing.assert_close(scale, torch.tensor([1.0, 254.0, 2.0, 127.0]) / 127)
    assert zero_point.tolist() == [0, 0, 0, 0]
    scale, zero_point = choose_qparams(low, high, AFFINE)
    torch.testing.assert_close(scale, torch.tensor([1.5, 254.0, 2.0, 254.0]) / 255)
    assert zero_point.tolist() == [42, -128, -128, 0]


@pytest.mark.parametrize("scheme", [SYMMETRIC, AFFINE])
def test_choose_qparams_keeps_scale_positive_when_all_is_zero(scheme: TensorScheme) -> None:
    scale, zero_point = grid(0.0, 0.0, scheme)
    assert scale.item() == pytest.approx(SMALLEST_SCALE)
    assert scale.half().item() > 0
    assert quantize(torch.zeros(3), scale, zero_point, scheme).unique().item() == zero_point.item()


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 2)])
def test_weight_qparams_cover_each_output_channel(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, 4).view(
        -1, *[1] * (len(shape) - 1)
    )
    scale, zero_point = weight_qparams(weight, TensorScheme(-128, 127, symmetric=True, per_channel=True))
    torch.testing.assert_close(scale, weight.abs().flatten(1).amax(dim=1) / 127)
    assert zero_point.shape == (4,)
    scale, zero_point = weight_qparams(weight, SYMMETRIC)
    assert scale.shape == zero_point.shape == ()
    torch.testing.assert_close(scale, weight.abs().max() / 127)


def test_tensorrt_scheme_is_symmetric_int8() -> None:
    scheme = SCHEMES["tensorrt"]
    for tensor in (scheme.activation, scheme.weight):
        assert (tensor.quant_min, tensor.quant_max, tensor.symmetric) == (-128, 127, True)
    assert (scheme.activation.per_channel, scheme.weight.per_channel) == (False, True)
