"""Observed ranges against NumPy's, over many batches and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnext_deploy.quantization.observers import MinMaxObserver, Observer, PercentileObserver

BINS = 4096
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
batches_of_values = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), min_size=1, max_size=4)


def observe(observer: Observer, *batches: Tensor) -> tuple[float, float]:
    for batch in batches:
        observer.observe(batch)
    return observer.value_range()


def noise(count: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed))


@PROPERTY
@given(batches=batches_of_values)
def test_minmax_is_exact(batches: list[list[float]]) -> None:
    found = observe(MinMaxObserver(), *(torch.tensor(batch) for batch in batches))
    everything = np.concatenate([np.array(batch, np.float32) for batch in batches])
    assert found == (everything.min(), everything.max())


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_percentile_is_within_one_bin_of_numpy(percentile: float, scale: float) -> None:
    x = noise(50_021, scale=scale)
    observer = PercentileObserver(percentile)
    low, high = observe(observer, *x.split(7001))
    width = observer.limit / BINS
    exact = np.percentile(x.abs().double().numpy(), percentile, method="inverted_cdf")
    assert exact - 1e-6 * scale <= max(-low, high) <= exact + width * 1.0001
    for end, seen in ((-low, -x.min().item()), (high, x.max().item())):
        assert end == pytest.approx(min(seen, exact), abs=width * 1.0001)


@PROPERTY
@given(batches=batches_of_values, percentile=st.floats(50.5, 100))
def test_percentile_covers_its_share_and_stays_within_what_was_seen(
    batches: list[list[float]], percentile: float
) -> None:
    observer = PercentileObserver(percentile)
    low, high = observe(observer, *(torch.tensor(batch) for batch in batches))
    everything = np.concatenate([np.array(batch, np.float32) for batch in batches]).astype(float)
    width = observer.limit / BINS
    slack = 1e-5 * max(abs(low), abs(high), width)
    covered = np.mean((everything >= low - slack) & (everything <= high + slack))
    assert covered >= percentile / 100 - 1e-9
    assert everything.min() - width - slack <= low
    assert high <= everything.max() + width + slack


def test_percentile_leaves_out_outliers_that_minmax_keeps() -> None:
    x = torch.cat([noise(100_000), torch.tensor([1000.0, -900.0])])
    assert observe(MinMaxObserver(), x) == (-900.0, 1000.0)
    low, high = observe(PercentileObserver(99.99), x)
    assert 3.0 < high < 6.0
    assert -6.0 < low < -3.0


def test_percentile_follows_one_sided_values() -> None:
    low, high = observe(PercentileObserver(99.0), noise(10_000).abs())
    assert low == pytest.approx(0.0, abs=0.01)
    assert high == pytest.approx(2.576, abs=0.1)


def test_percentile_keeps_counts_when_the_limit_doubles() -> None:
    x = noise(30_000)
    growing = PercentileObserver(99.0)
    observe(growing, x[:10_000] / 100, x[10_000:20_000], 10 * x[20_000:])
    assert growing.limit >= 32
    assert growing.counts.sum().item() == 30_000
    at_once = PercentileObserver(99.0)
    observe(at_once, torch.cat([10 * x[20_000:], x[10_000:20_000], x[:10_000] / 100]))
    # Values at the border of two bins may fall to either side.
    assert (growing.counts.cumsum(0) - at_once.counts.cumsum(0)).abs().max() <= 3
    assert growing.value_range() == pytest.approx(at_once.value_range(), abs=growing.limit / BINS)


def test_percentile_counts_every_value_when_a_batch_has_more_than_float32_can_count() -> None:
    observer = PercentileObserver(99.0)
    observer.observe(torch.full((1,), 1.0))
    count = (1 << 24) + 1000
    observer.observe(torch.zeros(1).expand(count))
    assert observer.counts.sum().item() == count + 1


@pytest.mark.parametrize("create", [MinMaxObserver, lambda: PercentileObserver(99.0)])
def test_range_is_zero_when_all_is_zero(create: type[Observer]) -> None:
    assert observe(create(), torch.zeros(5), torch.zeros(2, 3)) == (0.0, 0.0)


def test_percentile_takes_zeros_before_values_into_account() -> None:
    low, high = observe(PercentileObserver(90.0), torch.zeros(900), torch.full((10,), 4.0))
    assert low == pytest.approx(0.0, abs=0.01)
    assert high == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("create", [MinMaxObserver, lambda: PercentileObserver(99.0)], ids=["minmax", "percentile"])
def test_range_is_not_finite_when_a_value_is_not(create: type[Observer], first: bool, value: float) -> None:
    bad = torch.tensor([0.5, value, -0.5])
    low, high = observe(create(), *([bad, torch.ones(3)] if first else [torch.ones(3), bad]))
    assert not (np.isfinite(low) and np.isfinite(high))
