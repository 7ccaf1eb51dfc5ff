"""What an observer keeps of a tensor, and the ranges that need no search, against NumPy on all the values."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from convnext_deploy.quantization.observers import RANGE_METHODS, ActivationObserver
from convnext_deploy.quantization.qparams import choose_qparams
from convnext_deploy.quantization.scheme import SMALLEST_SCALE, TensorScheme

SIGNED = TensorScheme(-128, 127, symmetric=True, per_channel=False)
UNSIGNED = TensorScheme(0, 255, symmetric=False, per_channel=False)
SCHEMES = pytest.mark.parametrize("scheme", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
METHODS = pytest.mark.parametrize("method", RANGE_METHODS)
BINS = 4096  # on each side of zero


def observed(*batches: Tensor, channel_dim: int = -1) -> ActivationObserver:
    observer = ActivationObserver(channel_dim)
    for batch in batches:
        observer.observe(batch)
    return observer


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bin_width(largest: float) -> float:
    return float(2.0 ** (math.floor(math.log2(largest)) + 1) / BINS)


@pytest.mark.parametrize(
    ("shape", "channel_dim"),
    [((5,), -1), ((7, 5), -1), ((2, 3, 4, 5), -1), ((2, 5, 3, 4), 1), ((3, 96, 70, 50), 1), ((3, 70, 50, 96), -1)],
)
@pytest.mark.parametrize("layout", ["contiguous", "strided", "channels_last"])
def test_channel_extremes_are_exact(shape: tuple[int, ...], channel_dim: int, layout: str) -> None:
    batches = [noise(*shape, seed=seed) for seed in range(3)]
    if layout == "strided":
        batches = [torch.stack([batch, batch + 9], -1)[..., 0] for batch in batches]
    elif layout == "channels_last" and len(shape) == 4:
        batches = [batch.to(memory_format=torch.channels_last) for batch in batches]
    observer = observed(*batches, channel_dim=channel_dim)
    rows = np.concatenate([batch.movedim(channel_dim, -1).reshape(-1, batch.shape[channel_dim]) for batch in batches])
    np.testing.assert_array_equal(observer.channel_minimum, rows.min(0))
    np.testing.assert_array_equal(observer.channel_maximum, rows.max(0))
    assert observer.channel_minimum.dtype == observer.channel_maximum.dtype == torch.float32
    assert observer.seen == rows.size
    assert observer.value_range("minmax", SIGNED) == (rows.min(), rows.max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_seen_as_the_float32_that_is_nearest(dtype: torch.dtype) -> None:
    x = (noise(300, 8).double() * 1.1).to(dtype)
    found = observed(x)
    assert found.channel_maximum.dtype == torch.float32
    for method, scheme in itertools.product(RANGE_METHODS, (SIGNED, UNSIGNED)):
        assert found.value_range(method, scheme) == observed(x.float()).value_range(method, scheme), (method, scheme)


def test_moving_average_follows_its_definition() -> None:
    scales = [1.0, 3.0, 0.5, 2.0]
    batches = [noise(100, 4, seed=seed, scale=scale) + 0.1 * seed for seed, scale in enumerate(scales)]
    low, high = batches[0].min().item(), batches[0].max().item()
    assert observed(batches[0]).value_range("moving_average", SIGNED) == (low, high)
    for batch in batches[1:]:
        low = 0.8 * low + 0.2 * batch.min().item()
        high = 0.8 * high + 0.2 * batch.max().item()
    assert observed(*batches).value_range("moving_average", SIGNED) == pytest.approx((low, high), rel=1e-12)
    assert observed(*batches[::-1]).value_range("moving_average", SIGNED) != pytest.approx((low, high), rel=0.05)


@pytest.mark.parametrize("percentile", [51.0, 90.0, 99.0, 99.9, 99.99])
def test_percentile_is_within_one_bin_of_numpy(percentile: float) -> None:
    for scale, shift in itertools.product((1e-27, 1e-3, 1.0, 300.0), (0.0, 1.5)):
        x = scale * (noise(50_021, 1) + shift)
        low, high = observed(*x.split(7001)).value_range("percentile", SIGNED, percentile)
        exact = np.percentile(x.abs().double().numpy(), percentile, method="inverted_cdf")
        width = bin_width(x.abs().max().item())
        assert exact * (1 - 1e-6) <= max(-low, high) <= exact + 1.0001 * width, (scale, shift)
        for end, seen in ((-low, -x.min().item()), (high, x.max().item())):
            assert end == pytest.approx(min(seen, exact), abs=1.0001 * width), (scale, shift)


def test_percentile_100_is_exactly_everything_though_the_histogram_is_of_a_sample() -> None:
    x = noise(1024, 1024)
    x[777, 3], x[333, 1000] = 17.123, -16.789
    observer = observed(x)
    assert observer.value_range("percentile", SIGNED, 100.0) == observer.value_range("minmax", SIGNED)
    assert observer.value_range("minmax", SIGNED) == (x.min().item(), x.max().item())
    assert observer.value_range("percentile", SIGNED, 99.99)[1] < 6


def test_percentile_follows_one_sided_values_and_counts_zeros() -> None:
    low, high = observed(noise(10_000, 1).abs()).value_range("percentile", UNSIGNED, 99.0)
    assert 0 < low < 0.01
    assert high == pytest.approx(2.576, abs=0.1)
    low, high = observed(torch.zeros(900, 1), torch.full((10, 1), 4.0)).value_range("percentile", UNSIGNED, 90.0)
    assert low == 0
    assert 0 <= high < 0.01


def test_zeros_at_first_do_not_make_the_bins_coarser() -> None:
    x = noise(10_000, 1, scale=1e-9)
    found = observed(torch.zeros(1, 1), x).value_range("percentile", SIGNED, 99.0)
    assert found[1] == pytest.approx(2.576e-9, rel=0.05)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_no_value_is_lost_when_the_limit_doubles(order: tuple[int, ...]) -> None:
    parts = [noise(1000, 4) / 1e6, noise(1000, 4, seed=1), 1000 * noise(1000, 4, seed=2), torch.full((4, 4), 4096.0)]
    once, grown = observed(torch.cat(parts)), observed(*(parts[i] for i in order), parts[3])
    assert once._counts.sum() == grown._counts.sum() == once.seen == grown.seen
    # A value below zero on the border of two bins may have gone to either of them when they were smaller.
    assert (once._counts.cumsum(0) - grown._counts.cumsum(0)).abs().max() <= 2
    for percentile in (60.0, 90.0, 99.9):
        expected = once.value_range("percentile", SIGNED, percentile)
        assert grown.value_range("percentile", SIGNED, percentile) == pytest.approx(expected, abs=2.0)


def positions_as_values(positions: int, channels: int) -> Tensor:
    """Return values below 1 that lie in another bin for each position."""
    return ((torch.arange(positions) + 0.5) / positions).float()[:, None].expand(-1, channels).contiguous()


def test_sample_is_of_whole_positions_and_counts_every_channel_alike() -> None:
    channels = 96
    x = ((torch.arange(channels) + 0.5) / 128).expand(4, 50, 50, channels).contiguous()
    for observer in (
        observed(x),
        observed(x.movedim(-1, 1), channel_dim=1),
        observed(x.movedim(-1, 1).contiguous(), channel_dim=1),
    ):
        counts = observer._counts[observer._counts > 0]
        assert len(counts) == channels
        torch.testing.assert_close(counts, torch.full((channels,), 10_000.0, dtype=torch.float64), rtol=1e-12, atol=0)


def test_sample_takes_one_position_of_each_stretch_and_other_ones_in_every_call() -> None:
    x = positions_as_values(1024, 1024)  # 2^20 values, of which 2^17 may be counted: 128 positions
    observer, taken = ActivationObserver(-1), []
    for _ in range(8):
        before = observer._counts.clone()
        observer.observe(x)
        (bins,) = torch.nonzero(observer._counts - before, as_tuple=True)
        places = (bins - BINS) * 1024 // BINS
        assert (places // 8).tolist() == list(range(128))
        taken.append(places)
    offsets = torch.cat(taken) % 8
    assert torch.bincount(offsets, minlength=8).min() >= 96  # 128 of each, were it perfectly even
    assert len(torch.cat(taken).unique()) > 512
    assert torch.equal(observer._counts, observed(*[x] * 8)._counts)


def test_batches_count_by_their_size_not_by_that_of_their_sample() -> None:
    observer = observed(torch.full((1 << 10, 1 << 10), 1.0), torch.full((1, 1 << 10), 3.0))
    assert observer._counts.sum().item() == pytest.approx(observer.seen)
    assert observer.value_range("percentile", SIGNED, 99.5)[1] == pytest.approx(1.0, abs=0.01)
    assert observer.value_range("percentile", SIGNED, 99.95)[1] == pytest.approx(3.0, abs=0.01)


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    few, many = observed(*[noise(2, 30, 40)] * 2), observed(*[noise(2, 30, 40)] * 200)
    assert many.seen == 200 * 2400
    assert abs(len(pickle.dumps(vars(many))) - len(pickle.dumps(vars(few)))) < 64


@METHODS
@SCHEMES
def test_range_is_not_finite_once_a_value_was_not(method: str, scheme: TensorScheme) -> None:
    for value, position in itertools.product((math.nan, math.inf, -math.inf), range(3)):
        batches = [noise(10, 3, seed=seed) for seed in range(3)]
        batches[position][4, 1] = value
        observer = observed(*batches)
        low, high = observer.value_range(method, scheme)
        assert not (math.isfinite(low) and math.isfinite(high)), (value, position)
        finite = observer.channel_minimum.isfinite() & observer.channel_maximum.isfinite()
        assert finite.tolist() == [True, False, True], (value, position)
        if math.isnan(value):
            assert observer.channel_minimum[1].isnan()
            assert observer.channel_maximum[1].isnan()


def test_float64_beyond_float32_is_not_finite() -> None:
    assert observed(torch.tensor([[1e300]], dtype=torch.float64)).value_range("mse", SIGNED)[1] == math.inf


@METHODS
@SCHEMES
def test_range_is_zero_when_all_is_zero(method: str, scheme: TensorScheme) -> None:
    assert observed(torch.zeros(2, 3), torch.zeros(5, 3)).value_range(method, scheme) == (0.0, 0.0)


@METHODS
@SCHEMES
def test_range_represents_the_values_at_any_magnitude(method: str, scheme: TensorScheme) -> None:
    kinds = {
        "single": torch.ones(1, 1),
        "constant": torch.ones(100, 3),
        "negative": -torch.ones(100, 3),
        "two-sided": torch.tensor([[-1.0, 1.0]]).expand(50, 2),
        "noise": noise(200, 3).clamp(-1, 1),
    }
    for (kind, values), magnitude in itertools.product(kinds.items(), (1e-30, 1e-4, 1.0, 4.0, 1e30, 1.7e38)):
        x = values * magnitude
        low, high = observed(x).value_range(method, scheme)
        assert x.min() <= low <= high <= x.max(), (kind, magnitude)
        scale, zero_point = choose_qparams(torch.tensor(low), torch.tensor(high), scheme)
        steps = torch.round(x / scale).add(zero_point).clamp(scheme.quant_min, scheme.quant_max)
        off = ((steps - zero_point).double() * scale.double() - x.double()).square().mean().sqrt()
        assert off <= max(0.01 * magnitude, SMALLEST_SCALE), (kind, magnitude)


@METHODS
@SCHEMES
def test_range_exists_up_to_the_largest_float32(method: str, scheme: TensorScheme) -> None:
    largest = torch.finfo(torch.float32).max
    low, high = observed(torch.tensor([[-largest, largest, 1.0]])).value_range(method, scheme)
    assert -largest <= low < 0 < high <= largest


@SCHEMES
def test_one_value_a_thousand_times_all_others_is_seen_by_every_method(scheme: TensorScheme) -> None:
    x = torch.cat([noise(20_000, 5), torch.full((1, 5), 0.5)])
    x[-1, 2] = 4000.0
    found = {method: observed(x).value_range(method, scheme) for method in RANGE_METHODS}
    assert found["minmax"] == found["moving_average"] == (x.min().item(), 4000.0)
    assert found["percentile"][1] < 10
    # Cut off, the one value would lose more than all others gain.
    assert found["mse"][1] > 3000
    assert found["entropy"][1] < 400  # the least that has a bin for each level


def test_nothing_seen_is_not_a_number_and_empty_batches_are_nothing() -> None:
    empty = observed(torch.zeros(0, 3), torch.zeros(0, 3))
    assert empty.seen == 0
    assert all(math.isnan(end) for method in RANGE_METHODS for end in empty.value_range(method, SIGNED))
    x = noise(10, 3)
    assert observed(torch.zeros(0, 3), x).value_range("minmax", SIGNED) == (x.min().item(), x.max().item())


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown range method 'median'"):
        observed(noise(3, 3)).value_range("median", SIGNED)


def test_observing_keeps_no_graph_and_changes_nothing() -> None:
    x = noise(10, 3).requires_grad_()
    before = x.detach().clone()
    observer = observed(x)
    assert not observer.channel_minimum.requires_grad
    assert torch.equal(x.detach(), before)
