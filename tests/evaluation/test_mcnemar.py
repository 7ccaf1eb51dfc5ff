"""The exact McNemar test and Holm's correction: hand computation, published values, SciPy, and the level that they keep."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from convnext_deploy.metrics.paired import LEAST_DISCORDANT, SIGNIFICANCE, holm_p_values, mcnemar_p_value

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 · 1/2
        (5, 0, 0.0625),  # 2 · 1/32
        (6, 0, 0.03125),  # 2 · 1/64
        (1, 7, 0.0703125),  # 2 · (1 + 8)/256
        (2, 8, 0.109375),  # 2 · (1 + 10 + 45)/1024
        (4, 4, 1.0),
        (4, 5, 1.0),  # 2 · (1 + 9 + 36 + 84 + 126)/512
    ],
)
def test_mcnemar_p_value_equals_the_binomial_by_hand(lost: int, gained: int, expected: float) -> None:
    assert mcnemar_p_value(lost, gained) == mcnemar_p_value(gained, lost) == expected


@pytest.mark.parametrize(
    ("lost", "gained", "published", "digits"),
    [
        # Fagerland, Lydersen, Laake 2013, BMC Medical Research Methodology 13:91, table 1 and the exact conditional test
        (1, 7, 0.070, 3),
        # computed at vassarstats.net, as quoted in statsmodels' test of its exact McNemar test
        (121, 59, 0.000004, 6),
        (70, 59, 0.378688, 6),
        (80, 59, 0.089452, 6),
        (30, 60, 0.002060, 6),
        (10, 30, 0.002221, 6),
        (10, 10, 1.0, 6),
    ],
)
def test_mcnemar_p_value_equals_published_values(lost: int, gained: int, published: float, digits: int) -> None:
    assert round(mcnemar_p_value(lost, gained), digits) == published


@PROPERTY
@given(lost=st.integers(0, 3000), gained=st.integers(0, 3000))
def test_mcnemar_p_value_equals_scipy(lost: int, gained: int) -> None:
    if lost + gained:
        expected = binomtest(lost, lost + gained, 0.5).pvalue
        assert mcnemar_p_value(lost, gained) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@PROPERTY
@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_mcnemar_p_value_is_the_nearest_number_to_the_fraction(lost: int, gained: int) -> None:
    tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1))
    assert mcnemar_p_value(lost, gained) == min(1.0, float(Fraction(2 * tail, 2 ** (lost + gained))))


def test_mcnemar_p_value_of_many_images_is_small_and_finite() -> None:
    assert mcnemar_p_value(25_000, 20_000) < 1e-100
    assert mcnemar_p_value(5_000, 0) == 0.0  # below the smallest float


def test_least_discordant_is_the_fewest_images_that_can_be_significant() -> None:
    assert mcnemar_p_value(LEAST_DISCORDANT, 0) <= SIGNIFICANCE < mcnemar_p_value(LEAST_DISCORDANT - 1, 0)


@pytest.mark.parametrize("discordant", [3, 10, 41, 200])
def test_mcnemar_p_value_keeps_its_level_when_nothing_was_lost(discordant: int) -> None:
    weights = [math.comb(discordant, lost) / 2**discordant for lost in range(discordant + 1)]
    for level in (0.01, 0.05, 0.2):
        rejected = sum(w for lost, w in enumerate(weights) if mcnemar_p_value(lost, discordant - lost) <= level)
        assert rejected <= level


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ((), ()),
        ((0.03,), (0.03,)),
        # by hand: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 no smaller than the one before it
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        ((0.5, 0.6, 0.9), (1.0, 1.0, 1.0)),
        ((0.02, 0.02), (0.04, 0.04)),
    ],
)
def test_holm_p_values_equal_those_by_hand(p_values: tuple[float, ...], adjusted: tuple[float, ...]) -> None:
    assert holm_p_values(p_values) == pytest.approx(adjusted)


@PROPERTY
@given(p_values=st.lists(st.floats(0, 1), max_size=12), level=st.floats(0.001, 0.5))
def test_holm_p_values_reject_what_the_procedure_rejects(p_values: list[float], level: float) -> None:
    """The step-down procedure as Holm words it: go up the sorted list until a value exceeds level / (tests left)."""
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - rank) > level:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm_p_values(p_values)) if value <= level} == rejected


def test_holm_p_values_keep_the_chance_of_any_false_alarm_below_the_level() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.random((4000, 20))
    drawn[:, :5] *= 1e-6  # five that are really different, which must not make the others easier to reject
    false_alarms = sum(min(holm_p_values(row.tolist())[5:]) <= 0.05 for row in drawn)
    assert 0.03 < false_alarms / 4000 < 0.06
