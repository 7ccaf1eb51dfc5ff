"""The ratio of times of the same rounds, and how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convnext_deploy.metrics.ratios import median_ratio


def test_ratio_is_the_median_over_rounds_and_not_that_of_the_medians() -> None:
    # the second round found the machine ten times slower
    assert median_ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0])[0] == 2.0
    assert median_ratio([2.0, 3.0], [1.0, 1.0])[0] == 2.5


@pytest.mark.parametrize(
    ("rounds", "outside"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5), (40, 13), (2000, 955)]
)
def test_interval_leaves_out_as_many_on_each_side_as_the_sign_test_allows(rounds: int, outside: int) -> None:
    times = np.random.default_rng(0).permutation(np.arange(1.0, rounds + 1))
    _, low, high = median_ratio(times, np.ones(rounds))
    assert (low, high) == (1.0 + outside, rounds - outside)
    assert 2 * sum(math.comb(rounds, k) for k in range(outside + 2)) / 2**rounds > 0.05
    if outside:
        assert 2 * sum(math.comb(rounds, k) for k in range(outside + 1)) / 2**rounds <= 0.05


@pytest.mark.parametrize("rounds", [6, 7, 9, 15])
def test_interval_covers_the_true_ratio_in_95_of_100_cases(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    covered = 0
    for _ in range(2000):
        machine = rng.choice([1.0, 1.5], rounds)  # slow for a whole round
        theirs, ours = (machine * rng.lognormal(0.0, 0.05, rounds) * scale for scale in (1.2, 1.0))
        _, low, high = median_ratio(theirs, ours)
        covered += low <= 1.2 <= high
    assert covered >= 0.94 * 2000


@pytest.mark.parametrize(("theirs", "ours"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_that_do_not_pair_are_refused(theirs: list[float], ours: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no round|zip"):
        median_ratio(theirs, ours)
