"""The best choices under a budget, beside all choices."""

import itertools

import numpy as np
import pytest
from scipy.optimize import nnls

from convnext_deploy.metrics.knapsack import Knapsack, Option
from convnext_deploy.metrics.nonnegative import solve_nonnegative
from convnext_deploy.metrics.rounds import settle_rounds


def _items(seed: int) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    # costs are whole numbers of steps, so that rounding them up changes none
    return [
        [Option(float(rng.integers(0, 40)), rng.exponential()) for _ in range(rng.integers(1, 5))] for _ in range(5)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_within_the_budget_loses_less(seed: int) -> None:
    items = _items(seed)
    table = Knapsack(items, largest=128.0, steps=128)
    for budget in (0.0, 11.0, 37.5, 60.0, 128.0):
        every = [
            (sum(option.loss for option in each), sum(option.cost for option in each))
            for each in itertools.product(*items)
        ]
        least = min((loss for loss, cost in every if cost <= budget), default=None)
        chosen = table.choose(budget)
        if least is None:
            assert chosen is None
            continue
        assert chosen is not None
        options = [options[place] for options, place in zip(items, chosen, strict=True)]
        assert sum(option.cost for option in options) <= budget
        assert sum(option.loss for option in options) == pytest.approx(least)


def test_costs_between_steps_never_exceed_the_budget() -> None:
    rng = np.random.default_rng(0)
    items = [[Option(cost, 1 / (1 + cost)) for cost in rng.uniform(0, 1, 12)] for _ in range(9)]
    table = Knapsack(items, largest=6.0, steps=600)
    for budget in np.linspace(0.5, 6.0, 20):
        chosen = table.choose(float(budget))
        if chosen is not None:
            spent = sum(options[place].cost for options, place in zip(items, chosen, strict=True))
            assert spent <= budget


@pytest.mark.parametrize("seed", range(8))
def test_least_squares_without_negative_coefficients_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, values = rng.standard_normal((20, 9)), rng.standard_normal(20)
    if seed % 2:
        matrix = np.abs(matrix)
    np.testing.assert_allclose(solve_nonnegative(matrix, values), nnls(matrix, values)[0], atol=1e-10)


def test_nothing_is_solved_by_nothing() -> None:
    assert solve_nonnegative(np.zeros((3, 2)), np.ones(3)).tolist() == [0, 0]


def test_a_slow_round_and_a_slow_process_change_no_time() -> None:
    own, drift = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 1.4, 0.9])
    times = own[:, None] * drift
    times[2, 0] *= 1.8
    np.testing.assert_allclose(settle_rounds(times), own, rtol=1e-9)
