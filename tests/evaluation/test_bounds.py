"""Upper bounds of proportions and of mean costs: against SciPy, by hand, and by counting how often they are broken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from convnext_deploy.metrics.bounds import binomial_tail, clopper_pearson_upper, images_without_event, stringer_bound


@pytest.mark.parametrize("level", [0.05, 0.0036, 1e-6])
@pytest.mark.parametrize("total", [1, 2, 8, 50, 300])
def test_clopper_pearson_equals_the_beta_quantile_of_scipy(total: int, level: float) -> None:
    counts = np.arange(total + 1)
    expected = np.append(stats.beta.isf(level, counts[:-1] + 1, total - counts[:-1]), 1.0)
    assert clopper_pearson_upper(counts, total, level) == pytest.approx(expected, abs=1e-12)


def test_clopper_pearson_of_nothing_seen_is_the_rule_of_three() -> None:
    assert clopper_pearson_upper(0, 1000, 0.05).item() == pytest.approx(1 - 0.05**0.001)
    assert clopper_pearson_upper(0, 1000, 0.05).item() == pytest.approx(3 / 1000, rel=0.01)


def test_clopper_pearson_of_a_table() -> None:
    """Upper ends of two-sided 95 % intervals as printed in tables: 0 of 10, 1 of 10, 5 of 10, 10 of 10."""
    assert clopper_pearson_upper([0, 1, 5, 10], 10, 0.025) == pytest.approx([0.3085, 0.4450, 0.8129, 1.0], abs=1e-4)


def test_binomial_tail_equals_scipy() -> None:
    counts, shares = np.array([0, 3, 40, 299]), np.array([1e-4, 0.02, 0.2, 0.999])
    assert binomial_tail(counts, 300, shares) == pytest.approx(stats.binom.cdf(counts, 300, shares), rel=1e-10)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3])
@pytest.mark.parametrize("total", [8, 50, 500])
def test_true_share_exceeds_the_bound_in_five_of_a_hundred_cases_at_most(total: int, share: float) -> None:
    """Exactly: the probability of all counts whose bound is too low."""
    counts = np.arange(total + 1)
    broken = clopper_pearson_upper(counts, total, 0.05) < share
    assert stats.binom.pmf(counts[broken], total, share).sum() <= 0.05


def test_bound_of_costs_of_one_is_that_of_clopper_and_pearson() -> None:
    costs = np.array([1.0] * 3 + [0.0] * 97)
    assert stringer_bound(costs, 0.05) == pytest.approx(stats.beta.isf(0.05, 4, 97))


def test_bound_of_costs_by_hand() -> None:
    first, second, third = stats.beta.isf(0.05, [1, 2, 3], [100, 99, 98])
    costs = np.array([0.2] + [0.0] * 98 + [0.5])
    assert stringer_bound(costs, 0.05) == pytest.approx(first + 0.5 * (second - first) + 0.2 * (third - second))


def test_bound_of_costs_grows_with_each_and_shrinks_with_more_images() -> None:
    costs = np.zeros(200)
    bounds = [stringer_bound(costs, 0.05)]
    for index in range(5):
        costs[index] = 0.1
        bounds.append(stringer_bound(costs, 0.05))
    assert bounds == sorted(set(bounds))
    assert stringer_bound(np.tile(costs, 4), 0.05) < bounds[-1]
    assert stringer_bound(costs, 0.01) > bounds[-1]
    assert stringer_bound(np.ones(5), 0.05) == 1.0


@pytest.mark.parametrize("total", [50, 500])
@pytest.mark.parametrize("shape", [(0.01, 0.3, 3.0), (0.002, 8.0, 1.0), (0.2, 0.5, 5.0), (0.05, 1e6, 1e-3)])
def test_bound_of_costs_is_broken_in_five_of_a_hundred_cases_at_most(
    total: int, shape: tuple[float, float, float]
) -> None:
    """Costs that are 0 but for a few, which are of any kind between 0 and 1: 400 draws."""
    share, a, b = shape
    rng = np.random.default_rng(total)
    mean = share * a / (a + b)
    draws = (rng.uniform(size=(400, total)) < share) * rng.beta(a, b, (400, total))
    assert sum(stringer_bound(draw, 0.05) < mean for draw in draws) <= 20


@pytest.mark.parametrize(("share", "level"), [(0.002, 0.05), (0.002, 0.0036), (0.1, 0.05), (0.5, 0.5), (1.0, 0.05)])
def test_images_that_are_needed_are_the_fewest_that_do(share: float, level: float) -> None:
    count = images_without_event(share, level)
    assert count is not None
    assert clopper_pearson_upper(0, count, level).item() <= share + 1e-12
    if count > 1:
        assert clopper_pearson_upper(0, count - 1, level).item() > share
    assert math.isclose(count, math.log(level) / math.log1p(-share) if share < 1 else 1, abs_tol=1)


def test_no_number_of_images_shows_that_nothing_happens() -> None:
    assert images_without_event(0.0, 0.05) is None
