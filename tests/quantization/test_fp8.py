"""FP8 E4M3: rounding against PyTorch's and ml_dtypes' own casts, gradients, scales and their search on floating grids."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from convnext_deploy.quantization.fake_quantize import FakeQuantize, quantize
from convnext_deploy.quantization.levels import levels_of, round_to_level
from convnext_deploy.quantization.observers import RANGE_METHODS, ActivationObserver
from convnext_deploy.quantization.qparams import choose_qparams, mse_weight_qparams, weight_qparams
from convnext_deploy.quantization.scheme import SCHEMES

E4M3 = SCHEMES["tensorrt-fp8"].activation
PER_CHANNEL = SCHEMES["tensorrt-fp8"].weight
LEVELS = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)  # 0x7F is NaN


def numbers(count: int = 4096, seed: int = 0) -> torch.Tensor:
    """Return floats of all magnitudes around those of E4M3, and all levels with what lies half-way between them."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal(count) * 2.0 ** rng.integers(-16, 12, count)
    positive = np.concatenate(
        [LEVELS, (LEVELS[1:] + LEVELS[:-1]) / 2, [463.9, 464.0, 464.1, 480, 1e30, np.inf, 2.0**-10]]
    )
    return torch.from_numpy(np.concatenate([spread, positive, -positive]).astype(np.float32))


def test_rounding_is_that_of_pytorch_and_of_ml_dtypes_saturated_to_448() -> None:
    values = numbers()
    found = round_to_level(values, E4M3).clamp(E4M3.quant_min, E4M3.quant_max)
    saturated = values.clamp(-448, 448)
    assert torch.equal(found, saturated.to(torch.float8_e4m3fn).float())
    assert np.array_equal(found.numpy(), saturated.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    scale = torch.tensor(0.25)  # ties stay ties
    assert torch.equal(
        quantize(values * scale, scale, torch.tensor(0), E4M3),
        quantize(values, torch.tensor(1.0), torch.tensor(0), E4M3),
    )
    assert round_to_level(torch.tensor([torch.nan]), E4M3).isnan().all()


def test_levels_are_all_finite_numbers_of_the_type() -> None:
    assert np.array_equal(levels_of(E4M3).numpy(), np.concatenate([-LEVELS[:0:-1], LEVELS]))
    assert levels_of(E4M3)[[0, -1]].tolist() == [E4M3.quant_min, E4M3.quant_max]
    assert (levels_of(E4M3)[-1] - levels_of(E4M3)[-2]).item() == E4M3.last_step
    assert torch.equal(round_to_level(levels_of(E4M3).float(), E4M3).double(), levels_of(E4M3))


def test_gradient_goes_straight_through_within_the_grid_and_to_the_scale_by_its_definition() -> None:
    quantizer = FakeQuantize(E4M3, None)
    quantizer.freeze(torch.tensor(0.25), torch.tensor(0))
    # levels beside 2.2 are 2 apart a quarter, and 464 is the last that still rounds to 448
    x = (torch.tensor([2.2, -3.3, 0.001, 463.0, 470.0, -1000.0]) * 0.25).requires_grad_()
    y = quantizer(x)
    (y * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).sum().backward()
    assert y.tolist() == pytest.approx([0.5625, -0.8125, 0.25 * 2**-9 * 1, 112.0, 112.0, -112.0], rel=1e-6)
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]
    by_scale = 1 * (2.25 - 2.2) + 2 * (-3.25 + 3.3) + 3 * (2**-9 - 0.001) + 4 * (448 - 463) + 5 * 448 - 6 * 448
    assert quantizer.log2_scale.grad is not None
    assert quantizer.log2_scale.grad.item() == pytest.approx(by_scale * 0.25 * np.log(2), rel=1e-5)


def test_scales_cover_the_extremes_and_are_none_that_fp16_loses_digits_of() -> None:
    weight = torch.stack([torch.linspace(-1, 3, 9), torch.linspace(-1e-6, 1e-6, 9), torch.zeros(9)])
    scale, zero_point = weight_qparams(weight, PER_CHANNEL)
    assert scale.tolist() == pytest.approx([3 / 448, 2.0**-14, 2.0**-14])
    assert not zero_point.any()
    # a dead channel's values are levels all the same: as far off as any other's, relative to themselves
    rounded = quantize(weight, scale, zero_point, PER_CHANNEL) * scale[:, None]
    assert ((rounded - weight).abs() <= 2.0**-4 * weight.abs() + 2.0**-24).all()


def test_weight_scale_has_the_least_error_of_those_compared() -> None:
    weight = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 40))).float()
    covering, zero = weight_qparams(weight, PER_CHANNEL)
    best, _ = mse_weight_qparams(weight, PER_CHANNEL)

    def errors(scale: torch.Tensor) -> torch.Tensor:
        return (quantize(weight, scale, zero, PER_CHANNEL) * scale[:, None] - weight).square().sum(1)

    dense = torch.stack([errors(covering * share) for share in torch.linspace(0.3, 1.0, 300)])
    assert (errors(best) <= errors(covering)).all()
    assert (errors(best) <= 1.1 * dense.amin(0)).all()


@pytest.mark.parametrize("heavy_tailed", [False, True])
def test_ranges_by_error_are_as_good_as_any_of_a_dense_grid(heavy_tailed: bool) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_t(3, 20_000) if heavy_tailed else rng.standard_normal(20_000)
    x = torch.from_numpy(values.reshape(-1, 10)).float()
    observer = ActivationObserver(-1)
    observer.observe(x)

    def error(ends: tuple[float, float]) -> float:
        scale, zero = choose_qparams(torch.tensor(ends[0]), torch.tensor(ends[1]), E4M3)
        return (quantize(x, scale, zero, E4M3) * scale - x).square().mean().item()

    found = {method: observer.value_range(method, E4M3) for method in RANGE_METHODS}
    assert all(-high <= low <= 0 <= high for low, high in ((-max(-a, b), max(-a, b)) for a, b in found.values()))
    whole = float(x.abs().max())
    dense = [error((-whole * share, whole * share)) for share in np.geomspace(0.05, 1, 200)]
    assert error(found["mse"]) <= 1.02 * min(dense)
    assert error(found["mse"]) <= error(found["minmax"])
    assert error(found["entropy"]) <= 2 * error(found["minmax"])
