"""Intervals of proportions and of paired differences: published values, properties and coverage."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from convnext_deploy.metrics.intervals import paired_difference_interval, wilson_interval

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
Table = tuple[int, int, int, int]
tables = st.tuples(*[st.integers(0, 400)] * 4).filter(lambda table: sum(table) > 0)

# Newcombe 1998, Statistics in Medicine 17:2635, table III, method 10. The paper prints four digits.
PUBLISHED: dict[Table, tuple[float, float]] = {
    (36, 12, 2, 0): (0.0569, 0.3404),
    (20, 12, 2, 16): (0.0562, 0.3292),
    (18, 12, 2, 18): (0.0562, 0.3290),
    (36, 14, 0, 0): (0.1528, 0.4167),
    (35, 14, 0, 1): (0.1461, 0.4175),
    (18, 14, 0, 18): (0.1441, 0.3963),
    (2, 97, 1, 0): (0.8721, 0.9854),
    (0, 29, 1, 0): (0.6666, 0.9882),
    (2, 98, 0, 0): (0.9178, 0.9945),
    (1, 98, 0, 1): (0.9171, 0.9916),
    (0, 30, 0, 0): (0.8395, 1.0000),
    (54, 0, 0, 0): (-0.0664, 0.0664),
}


def newcombe(table: Table) -> tuple[float, float]:
    """Method 10 in the paper's own terms: cells e, f, g, h; limits as roots of Wilson's quadratic."""
    e, f, g, h = table
    n = e + f + g + h
    z2 = NormalDist().inv_cdf(0.975) ** 2

    def limits(share: float) -> list[float]:
        return sorted(np.roots([1 + z2 / n, -(2 * share + z2 / n), share**2]).real)

    p1, p2 = (e + f) / n, (e + g) / n
    (l1, u1), (l2, u2) = limits(p1), limits(p2)
    denominator = math.sqrt((e + f) * (g + h) * (e + g) * (f + h))
    numerator = float(e * h - f * g)
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    phi = numerator / denominator if denominator else 0.0
    delta = math.sqrt(max(0, (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2))
    epsilon = math.sqrt(max(0, (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2))
    return p1 - p2 - delta, p1 - p2 + epsilon


@pytest.mark.parametrize(("table", "interval"), PUBLISHED.items())
def test_paired_difference_interval_equals_published_values(table: Table, interval: tuple[float, float]) -> None:
    assert paired_difference_interval(*table) == pytest.approx(interval, abs=6e-5)


@PROPERTY
@given(table=tables)
def test_paired_difference_interval_equals_newcombe_method_10(table: Table) -> None:
    # A double root has half the digits of a simple one, so that the reference is exact to about 1e-7 there.
    assert paired_difference_interval(*table) == pytest.approx(newcombe(table), abs=1e-6)


@PROPERTY
@given(table=tables)
def test_paired_difference_interval_contains_the_difference_and_stays_in_range(table: Table) -> None:
    low, high = paired_difference_interval(*table)
    difference = (table[1] - table[2]) / sum(table)
    assert low <= difference <= high
    assert low < high
    assert low >= -1 - 1e-12
    assert high <= 1 + 1e-12


@PROPERTY
@given(table=tables)
def test_paired_difference_interval_mirrors_when_the_two_or_right_and_wrong_are_swapped(table: Table) -> None:
    low, high = paired_difference_interval(*table)
    both, first, second, neither = table
    assert paired_difference_interval(both, second, first, neither) == pytest.approx((-high, -low), abs=1e-9)
    assert paired_difference_interval(neither, first, second, both) == pytest.approx((low, high), abs=1e-9)


@PROPERTY
@given(table=tables, factor=st.integers(2, 10))
def test_paired_difference_interval_shrinks_when_there_are_more_images(table: Table, factor: int) -> None:
    low, high = paired_difference_interval(*table)
    many_low, many_high = paired_difference_interval(*(factor * count for count in table))
    assert many_high - many_low < high - low


def test_paired_difference_interval_is_narrower_when_predictions_agree_more() -> None:
    widths = []
    for discordant in (5, 50, 200):
        low, high = paired_difference_interval(700 - discordant, discordant, discordant, 300 - discordant)
        widths.append(high - low)
    assert widths[0] < widths[1] < widths[2]


@pytest.mark.parametrize(
    ("share", "difference", "discordant"),
    [(0.97, 0.0, 0.01), (0.97, 0.005, 0.02), (0.8, 0.02, 0.1), (0.8, 0.0, 0.3), (0.5, 0.1, 0.5), (0.99, 0.0, 0.004)],
)
@pytest.mark.parametrize("total", [200, 540])
def test_paired_difference_interval_covers_the_truth_when_simulated(
    share: float, difference: float, discordant: float, total: int
) -> None:
    only_first, only_second = (discordant + difference) / 2, (discordant - difference) / 2
    both = share - only_first
    cells = np.array([both, only_first, only_second, 1 - both - discordant])
    assert cells.min() >= 0
    drawn = np.random.default_rng(0).multinomial(total, cells, 4000)
    unique, times = np.unique(drawn, axis=0, return_counts=True)
    covered = 0
    for table, count in zip(unique.tolist(), times.tolist(), strict=True):
        low, high = paired_difference_interval(*table)
        covered += count * (low <= difference <= high)
    assert covered / 4000 >= 0.93


@PROPERTY
@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_interval_equals_scipy(total: int, share: float) -> None:
    successes = round(share * total)
    expected = binomtest(successes, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


@PROPERTY
@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_interval_contains_the_proportion_and_mirrors(total: int, share: float) -> None:
    successes = round(share * total)
    low, high = wilson_interval(successes, total)
    assert 0 <= low <= successes / total + 1e-12
    assert successes / total - 1e-12 <= high <= 1
    assert wilson_interval(total - successes, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assume(total > 1)
    assert high - low < 0.811  # the widest is one of two: 0.8109
