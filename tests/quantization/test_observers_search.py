"""The ranges and weight scales that are searched for: what they minimise, against the plainest computation of the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.quantization.observers import ActivationObserver
from convnext_deploy.quantization.qparams import choose_qparams, mse_weight_qparams, weight_qparams
from convnext_deploy.quantization.scheme import SMALLEST_SCALE, TensorScheme
from tests.shared import heavy_except

Values = NDArray[np.float64]
GRIDS = {
    "signed": TensorScheme(-128, 127, symmetric=True, per_channel=False),
    "unsigned": TensorScheme(0, 255, symmetric=False, per_channel=False),
    "shifted": TensorScheme(-128, 127, symmetric=False, per_channel=False),
    "four bits": TensorScheme(0, 15, symmetric=False, per_channel=False),
}
BINS = 4096  # on each side of zero


def draw(kind: str, count: int = 20_000) -> Tensor:
    """Return values `(count, 1)` of a distribution."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(count, 1, generator=generator)
    uniform = torch.rand(count, 1, generator=generator)
    return {
        "normal": normal,
        "shifted": normal - 2,
        "gelu": torch.nn.functional.gelu(normal),
        "positive": normal.abs() + 0.5,
        "heavy": normal / uniform.clamp(min=0.01).sqrt(),
        "outliers": torch.cat([normal, torch.tensor([[30.0], [-12.0]])]),
        "zeros": normal.relu(),
        "uniform": 2 * uniform - 1,
        "huge": normal * 1e30,
    }[kind]


KINDS = pytest.mark.parametrize(
    "kind",
    heavy_except(
        ("gelu", "positive", "outliers"),
        ["normal", "shifted", "gelu", "positive", "heavy", "outliers", "zeros", "uniform", "huge"],
    ),
)
EVERY_GRID = pytest.mark.parametrize("scheme", GRIDS.values(), ids=GRIDS.keys())


def observed(x: Tensor) -> ActivationObserver:
    observer = ActivationObserver(-1)
    for part in x.split(7001):
        observer.observe(part)
    return observer


def grid_of(low: float, high: float, scheme: TensorScheme) -> tuple[float, int]:
    scale, zero_point = choose_qparams(torch.tensor(low), torch.tensor(high), scheme)
    return scale.item(), int(zero_point.item())


def rounded(x: Values, scale: float, zero_point: int, scheme: TensorScheme) -> Values:
    return (np.clip(np.round(x / scale) + zero_point, scheme.quant_min, scheme.quant_max) - zero_point) * scale


def squared_error(x: Values, low: float, high: float, scheme: TensorScheme) -> float:
    return float(np.mean((rounded(x, *grid_of(low, high, scheme), scheme) - x) ** 2))


def ranges(x: Values, scheme: TensorScheme, shares: Values) -> list[tuple[float, float]]:
    """Return ranges with shares of the ends: of both together for a symmetric grid, of each with each otherwise."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    if scheme.symmetric:
        reach = max(-low, high)
        return [(max(low, -share * reach), min(high, share * reach)) for share in shares]
    return [(a * low, b * high) for a in (shares if low else [1.0]) for b in (shares if high else [1.0])]


@KINDS
@EVERY_GRID
def test_mse_range_is_as_good_as_any_of_a_dense_grid_on_the_raw_values(kind: str, scheme: TensorScheme) -> None:
    values = draw(kind)
    x = values.double().numpy().ravel()
    found = squared_error(x, *observed(values).value_range("mse", scheme), scheme)
    shares = np.linspace(1, 0.02, 300 if scheme.symmetric else 25)
    least = min(squared_error(x, low, high, scheme) for low, high in ranges(x, scheme, shares))
    assert found <= 1.01 * least
    assert found <= 1.001 * squared_error(x, x.min(), x.max(), scheme)


@KINDS
@EVERY_GRID
def test_squared_error_of_a_range_is_that_of_the_raw_values(kind: str, scheme: TensorScheme) -> None:
    values = draw(kind)
    x = values.double().numpy().ravel()
    observer = observed(values)
    candidates = ranges(x, scheme, np.array([1.0, 0.77, 0.5, 0.31, 0.12]))
    found = observer._squared_errors(torch.tensor(candidates, dtype=torch.float64), scheme) * observer._width**2
    expected = [squared_error(x, low, high, scheme) for low, high in candidates]
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_mse_range_cuts_off_what_four_bits_can_do_without() -> None:
    low, high = observed(draw("normal")).value_range("mse", GRIDS["four bits"])
    # The least squared error of 16 equally spaced levels has steps of 0.335 (Max 1960, table II): 16 of them, 5.36 wide.
    assert high - low == pytest.approx(15 * 0.335, rel=0.06)


def histogram(x: Values) -> tuple[Values, float]:
    """Return counts of `2 * BINS` bins around zero and their width; the limit is the power of two above all magnitudes."""
    width = 2.0 ** (math.floor(math.log2(np.abs(x).max())) + 1) / BINS
    counts = np.zeros(2 * BINS)
    np.add.at(counts, np.floor(x / width).astype(int) + BINS, 1)
    return counts, width


def divergence(counts: Values, width: float, low: float, high: float, scheme: TensorScheme) -> float:
    """Return KL(P || Q) from its definition, bin by bin."""
    scale, zero_point = grid_of(low, high, scheme)
    if scale < width:
        return math.inf
    groups: dict[int, list[int]] = {}
    below, above = 0.0, 0.0
    for i, count in enumerate(counts):
        level = math.floor((i + 0.5 - BINS) * width / scale + 0.5) + zero_point
        if level < scheme.quant_min:
            below += count
        elif level > scheme.quant_max:
            above += count
        else:
            groups.setdefault(level, []).append(i)
    inside = [i for group in groups.values() for i in group]
    p = {i: float(counts[i]) for i in inside}
    p[inside[0]] += below
    p[inside[-1]] += above
    q = {}
    for group in groups.values():
        filled = [i for i in group if p[i] > 0]
        whole = sum(counts[i] for i in group)
        for i in filled:
            q[i] = whole / len(filled) if whole > 0 else 1e-4
    sum_p, sum_q = sum(p.values()), sum(q.values())
    return sum(p[i] / sum_p * math.log(p[i] / sum_p / (q[i] / sum_q)) for i in q)


@KINDS
@pytest.mark.parametrize("name", ["signed", "unsigned", "four bits"])
def test_divergence_of_a_range_follows_its_definition(kind: str, name: str) -> None:
    values, scheme = draw(kind, 3000), GRIDS[name]
    x = values.double().numpy().ravel()
    counts, width = histogram(x)
    shares = np.array([1.0, 0.9, 0.61, 0.4, 0.13, 0.01])
    candidates = ranges(x, scheme, shares)
    found = observed(values)._divergences(torch.tensor(candidates, dtype=torch.float64), scheme)
    expected = [divergence(counts, width, low, high, scheme) for low, high in candidates]
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
    assert sum(math.isfinite(each) for each in expected) >= 3


@pytest.mark.parametrize("name", ["signed", "unsigned"])
def test_divergence_follows_its_definition_when_counts_are_those_of_a_sample(name: str) -> None:
    values, scheme = draw("heavy", 96 * 5000).reshape(5000, 96), GRIDS[name]
    observer = observed(values)
    counts = observer._counts.numpy()
    assert np.any(counts != np.round(counts))
    candidates = ranges(values.double().numpy(), scheme, np.array([1.0, 0.7, 0.4]))
    found = observer._divergences(torch.tensor(candidates, dtype=torch.float64), scheme)
    expected = [divergence(counts, observer._width, low, high, scheme) for low, high in candidates]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@KINDS
@pytest.mark.parametrize("name", ["signed", "unsigned"])
def test_entropy_range_diverges_no_more_than_any_of_a_grid(kind: str, name: str) -> None:
    values, scheme = draw(kind), GRIDS[name]
    x = values.double().numpy().ravel()
    counts, width = histogram(x)
    found = divergence(counts, width, *observed(values).value_range("entropy", scheme), scheme)
    candidates = ranges(x, scheme, np.linspace(1, 0.1, 40 if scheme.symmetric else 6))
    # The divergence is a ragged function of the range, as levels and bins do not fit; a search sees some of its teeth.
    assert found <= 1.1 * min(divergence(counts, width, low, high, scheme) for low, high in candidates) + 1e-9


def test_entropy_range_keeps_all_of_a_uniform_distribution_and_leaves_out_outliers() -> None:
    low, high = observed(draw("uniform", 200_000)).value_range("entropy", GRIDS["unsigned"])
    assert low < -0.97
    assert high > 0.97
    low, high = observed(draw("outliers", 200_000)).value_range("entropy", GRIDS["unsigned"])
    assert -7 < low < -3
    assert 3 < high < 7


@pytest.mark.parametrize("method", ["mse", "entropy"])
@KINDS
@EVERY_GRID
def test_search_is_deterministic_and_scales_with_the_values(method: str, kind: str, scheme: TensorScheme) -> None:
    x = draw(kind, 2000)
    found = observed(x).value_range(method, scheme)
    assert observed(x.clone()).value_range(method, scheme) == found
    assert observed(x / 8).value_range(method, scheme) == pytest.approx([end / 8 for end in found], rel=1e-9)


PER_CHANNEL = TensorScheme(-128, 127, symmetric=True, per_channel=True)
WEIGHT_GRIDS = {
    "per channel": PER_CHANNEL,
    "per tensor": GRIDS["signed"],
    "four bits per channel": TensorScheme(-8, 7, symmetric=True, per_channel=True),
    "asymmetric": TensorScheme(0, 255, symmetric=False, per_channel=True),
}


def weight_errors(weight: Tensor, scales: Tensor, zero_points: Tensor, scheme: TensorScheme) -> Values:
    """Return the squared error of each row, or of everything in one."""
    rows = weight.double().flatten(1).numpy() if scheme.per_channel else weight.double().reshape(1, -1).numpy()
    pairs = zip(rows, scales.reshape(-1).tolist(), zero_points.reshape(-1).tolist(), strict=True)
    return np.array([np.sum((rounded(row, scale, zero, scheme) - row) ** 2) for row, scale, zero in pairs])


@pytest.mark.parametrize("name", WEIGHT_GRIDS)
@pytest.mark.parametrize("shape", [(6, 1), (9, 1, 7, 7), (40, 384), (3, 96, 2, 2), (4, 30_000)])
@pytest.mark.parametrize("tails", [False, True])
def test_weight_scale_has_the_least_squared_error(name: str, shape: tuple[int, ...], tails: bool) -> None:
    scheme = WEIGHT_GRIDS[name]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    weight = weight**3 if tails else weight
    covering, zero_point = weight_qparams(weight, scheme)
    scale, found_zero = mse_weight_qparams(weight, scheme)
    assert scale.shape == covering.shape == ((len(weight),) if scheme.per_channel else ())
    assert scale.dtype == torch.float32
    assert torch.equal(found_zero, zero_point)
    found = weight_errors(weight, scale, zero_point, scheme)
    assert (found <= weight_errors(weight, covering, zero_point, scheme) * (1 + 1e-5)).all()
    scales = [(covering * share).clamp(min=SMALLEST_SCALE) for share in np.linspace(1, 0.05, 96)]
    tried = [weight_errors(weight, candidate, zero_point, scheme) for candidate in scales]
    assert (found <= 1.02 * np.min(tried, axis=0)).all()


def test_weight_scale_cuts_off_one_of_very_many_values() -> None:
    count = 50_000
    weight = torch.randn(1, count, generator=torch.Generator().manual_seed(0))
    weight[0, 7] = 12.0
    covering, (found, _) = weight_qparams(weight, PER_CHANNEL)[0], mse_weight_qparams(weight, PER_CHANNEL)
    # (127 (1 - r))^2 + count r^2 / 12 squared steps are least at this share r
    assert (found / covering).item() == pytest.approx(1 / (1 + count / (12 * 127**2)), rel=0.03)


def test_weight_scale_is_the_same_share_at_any_magnitude_and_never_too_small() -> None:
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    scale, (covering, _) = mse_weight_qparams(weight, PER_CHANNEL)[0], weight_qparams(weight, PER_CHANNEL)
    assert (scale < covering).any()
    torch.testing.assert_close(
        mse_weight_qparams(weight * 2.0**100, PER_CHANNEL)[0], scale * 2.0**100, rtol=1e-6, atol=0
    )
    for magnitude in (0.0, 1e-30, 3e-5):  # the covering scale of the last is 7e-7
        assert mse_weight_qparams(magnitude * weight, PER_CHANNEL)[0].tolist() == pytest.approx([SMALLEST_SCALE] * 3)


def test_weight_scale_carries_no_gradient() -> None:
    weight = torch.randn(3, 50).requires_grad_()
    assert not mse_weight_qparams(weight, PER_CHANNEL)[0].requires_grad
