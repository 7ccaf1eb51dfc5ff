"""The order of removal and its errors are those that solving each least-squares problem anew gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convnext_deploy.models.block_shapes import candidate_widths
from convnext_deploy.pruning.elimination import damped, eliminate
from convnext_deploy.pruning.moments import fit, gather, joined, selected, solve, squared_error


def data(units: int = 6, outputs: int = 3, count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return correlated inputs `(count, units)` with means of their own, and weights `(outputs, units)`, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, units, generator=generator, dtype=torch.float64)
    mixed = mixed @ torch.randn(units, units, generator=generator, dtype=torch.float64) + torch.arange(units)
    return mixed, torch.randn(outputs, units, generator=generator, dtype=torch.float64)


def error_without(covariance: Tensor, weight: Tensor, gone: tuple[int, ...]) -> float:
    """Return the error that the best weights of the others leave, by the Schur complement."""
    stays = [unit for unit in range(len(covariance)) if unit not in gone]
    p, k = list(gone), stays
    rest = covariance[p][:, p]
    if k:
        rest = rest - covariance[p][:, k] @ torch.linalg.solve(covariance[k][:, k], covariance[k][:, p])
    return torch.trace(weight[:, p] @ rest @ weight[:, p].T).item()


def test_each_removal_is_the_one_that_costs_least_with_the_others_adjusted() -> None:
    inputs, weight = data()
    covariance = torch.cov(inputs.T, correction=0)
    found = eliminate(covariance, weight, granule=1)
    raised = damped(covariance)
    gone: tuple[int, ...] = ()
    for unit in found.order.tolist():
        left = [other for other in range(6) if other not in gone]
        costs = {other: error_without(raised, weight, (*gone, other)) for other in left}
        assert unit == min(costs, key=lambda other: costs[other])
        gone = (*gone, unit)
        assert found.errors[6 - len(gone)] == pytest.approx(costs[unit])
    assert found.errors[6] == 0.0
    assert found.errors[0] == pytest.approx(torch.trace(weight @ raised @ weight.T).item())


def test_granules_and_a_given_order_have_the_errors_of_their_sets() -> None:
    inputs, weight = data(units=70)
    covariance = torch.cov(inputs.T, correction=0)
    raised = damped(covariance)
    assert candidate_widths(70) == (0, 32, 64, 70)
    for order in (None, torch.arange(70)):
        found = eliminate(covariance, weight, order=order)
        assert tuple(sorted(found.errors)) == candidate_widths(70)
        assert sorted(found.order.tolist()) == list(range(70))
        for width, error in found.errors.items():
            gone = tuple(found.order[: 70 - width].tolist())
            assert error == pytest.approx(error_without(raised, weight, gone), abs=1e-9)
    assert torch.equal(found.order, torch.arange(70))


def test_units_that_are_always_zero_go_first_and_cost_nothing() -> None:
    inputs, weight = data(units=8)
    inputs[:, [2, 5]] = 0.0
    found = eliminate(torch.cov(inputs.T, correction=0), weight, granule=2)
    assert set(found.order[:2].tolist()) == {2, 5}
    assert found.errors[6] < 0.05 * found.errors[4]


def test_fit_keeps_means_and_is_the_least_squares_solution() -> None:
    inputs, weight = data(count=2000)
    targets = inputs @ weight.T + 0.1 * data(outputs=3, count=2000, seed=1)[0][:, :3]
    halves = [gather(zip(inputs[s::2].split(300), targets[s::2].split(300), strict=True)) for s in (0, 1)]
    kept = torch.tensor([0, 2, 3, 5])
    both = joined(*halves)
    assert both.count == 2000
    assert torch.allclose(both.hh, torch.cov(inputs.T, correction=0))
    assert torch.allclose(both.h, inputs.mean(0))

    few = [selected(half, kept) for half in halves]
    found, bias = fit(few, weight[:, kept])
    given = inputs[:, kept] @ found.T + bias
    assert torch.allclose(given.mean(0), targets.mean(0))
    exact = torch.linalg.lstsq(torch.cat([inputs[:, kept], torch.ones(2000, 1)], 1), targets).solution
    least = (torch.cat([inputs[:, kept], torch.ones(2000, 1)], 1) @ exact - targets).square().sum(1).mean().item()
    own = (given - targets).square().sum(1).mean().item()
    assert own == pytest.approx(least, rel=1e-3)
    assert squared_error(selected(both, kept), found, bias) == pytest.approx(own)
    untouched, _ = solve(selected(both, kept), weight[:, kept], float("inf"))
    assert torch.equal(untouched, weight[:, kept])


def test_the_damping_suits_what_was_not_seen() -> None:
    # as many units as positions: without damping the weights would fit the noise of the first half alone
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 60, 50, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    targets = inputs @ weight.T + 3 * torch.randn(2, 60, 4, generator=generator, dtype=torch.float64)
    found, bias = fit([gather([pair]) for pair in zip(inputs, targets, strict=True)], weight)
    fresh = torch.randn(1000, 50, generator=generator, dtype=torch.float64)
    error = (fresh @ found.T + bias - fresh @ weight.T).square().sum(1).mean()
    sharp, own = solve(joined(*(gather([pair]) for pair in zip(inputs, targets, strict=True))), weight, 1e-4)
    assert error < 0.2 * (fresh @ sharp.T + own - fresh @ weight.T).square().sum(1).mean()


def test_widths_end_with_all_units() -> None:
    assert candidate_widths(96) == (0, 32, 64, 96)
    assert candidate_widths(16) == (0, 16)
