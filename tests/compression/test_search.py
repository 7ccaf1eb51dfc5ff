"""The search of widths, on losses and times that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.compression.budget import Budget, parse_budget
from convnext_deploy.compression.explore import choose_within
from convnext_deploy.compression.search import Widths, WidthSearch
from convnext_deploy.compression.time_model import Curve, TimeModel
from convnext_deploy.compression.times import Times
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.block_shapes import block_shapes, candidate_widths

SHAPES = block_shapes(ModelSpec("convnext_atto", 10, patch_size=2), 32)
TIMES = TimeModel(0.2, tuple(Curve((32, 160 << stage), (0.02, 0.08)) for stage in range(4)))
SENSITIVE = 1  # a block of which every unit counts


def _losses() -> list[dict[int, float]]:
    return [
        {
            width: (9.0 if block == SENSITIVE else 1.0) * (1 - width / shape.hidden) ** 2
            for width in candidate_widths(shape.hidden)
        }
        for block, shape in enumerate(SHAPES)
    ]


def test_the_front_loses_more_the_faster_it_is_and_spares_what_is_sensitive() -> None:
    search = WidthSearch(SHAPES, _losses(), TIMES)
    assert search.dense_ms == pytest.approx(0.2 + 12 * 0.08)
    assert search.least_ms == pytest.approx(0.2 + 0.02)  # one block has to be
    budgets = np.linspace(1.0, 0.4, 7) * search.dense_ms
    front = search.front(budgets.tolist())
    assert front[0].widths == tuple(shape.hidden for shape in SHAPES)
    assert front[0].loss == 0
    losses = [each.loss for each in front]
    assert losses == sorted(losses)
    for each, budget in zip(front, budgets, strict=True):
        assert each.predicted_ms <= budget + 1e-9
    shares = [width / shape.hidden for width, shape in zip(front[3].widths, SHAPES, strict=True)]
    assert shares[SENSITIVE] == max(shares)
    assert search.choose(0.1) is None
    assert [(price.saved_ms, price.loss) for price in search.prices(front[0])] == [(0.0, 0.0)] * len(SHAPES)
    saved = sum(price.saved_ms for price in search.prices(front[3]))
    assert saved == pytest.approx(search.dense_ms - front[3].predicted_ms)


def test_measured_losses_decide_among_what_is_near_the_optimum() -> None:
    """The network does not mind that its blocks 4 to 9 get narrow, whatever the sum of the losses says."""
    losses = _losses()

    def measure(widths: tuple[int, ...]) -> float:
        return sum(
            each[width] * (0.2 if 4 <= block < 10 else 1.0)
            for block, (each, width) in enumerate(zip(losses, widths, strict=True))
        )

    search, budget = WidthSearch(SHAPES, losses, TIMES), 0.7
    plain = search.choose(budget)
    found = search.refine(budget, measure)
    assert plain is not None
    assert all(each.predicted_ms <= budget + 1e-9 for each in found)
    assert [each.measured for each in found] == sorted(each.measured or math.inf for each in found)
    assert found[0].measured is not None
    assert found[0].measured < 0.95 * measure(plain.widths)
    assert len({each.widths for each in found}) == len(found) > 5
    assert found == WidthSearch(SHAPES, losses, TIMES).refine(budget, measure)
    assert search.refine(0.1, measure) == []


@pytest.mark.parametrize(("slower", "checks"), [(0.9, 1), (1.0, 1), (1.04, 2), (1.3, 2)])
@pytest.mark.parametrize("budget", [Budget(ratio=0.7), Budget(ms=0.8)])
def test_a_choice_whose_file_was_timed_leaves_room_for_a_slower_day(slower: float, checks: int, budget: Budget) -> None:
    search = WidthSearch(SHAPES, _losses(), TIMES)
    times, timed = Times(TIMES, search.dense_ms, "known", is_measured=True), []

    def check(widths: Sequence[int]) -> tuple[float, float]:
        timed.append(slower * TIMES.predict_ms(SHAPES, widths))
        return timed[-1], timed[-1] / search.dense_ms

    judge: Any = SimpleNamespace(kl=lambda widths: 0.1, agreement=lambda widths: 0.9)
    refine = lambda ms: [found] if (found := search.choose(ms)) else []  # noqa: E731  # of one line
    chosen = choose_within(budget, times, search, judge, refine, check)
    assert len(timed) == checks
    assert 0.8 < timed[-1] / budget.within(search.dense_ms) <= 0.96
    assert chosen.checked == (timed[-1], timed[-1] / search.dense_ms)
    # a proxy is of no machine that has slower days
    assert choose_within(budget, times, search, judge, refine, None).predicted_ms > 0.96 * chosen.budget_ms


@pytest.mark.parametrize(("slower", "limits"), [(1.25, 4), (2.5, 3)])
def test_a_choice_that_stays_too_slow_is_told_with_what_was_found_at_its_own_limit(slower: float, limits: int) -> None:
    """Files that miss each prediction are made anew until the last check, or until nothing is faster."""
    search, asked = WidthSearch(SHAPES, _losses(), TIMES), []
    times, budget = Times(TIMES, search.dense_ms, "known", is_measured=True), Budget(ratio=0.9)

    def refine(limit_ms: float) -> list[Widths]:
        asked.append(limit_ms)
        return search.refine(limit_ms, lambda widths: -sum(widths))

    def check(widths: Sequence[int]) -> tuple[float, float]:
        # no network keeps the budget: each round takes more than its prediction by the same factor again
        taken = slower ** len(asked) * TIMES.predict_ms(SHAPES, widths)
        return taken, taken / search.dense_ms

    judge: Any = SimpleNamespace(kl=lambda widths: -sum(widths), agreement=lambda widths: 0.9)
    chosen = choose_within(budget, times, search, judge, refine, check)
    assert len(asked) == limits
    assert asked == sorted(set(asked), reverse=True)
    plain = search.choose(asked[-1])
    assert plain is not None
    assert chosen.first_kl == -sum(plain.widths)
    assert chosen.kl <= chosen.first_kl


@pytest.mark.parametrize(
    ("text", "found"),
    [("0.6x", Budget(ratio=0.6)), (" 3ms", Budget(ms=3.0)), (".5X", Budget(ratio=0.5)), ("2.5 ms", Budget(ms=2.5))],
)
def test_a_budget_is_a_share_or_a_time(text: str, found: Budget) -> None:
    assert parse_budget(text) == found
    assert found.within(10.0) == (found.ms if found.ratio is None else pytest.approx(10 * found.ratio))


@pytest.mark.parametrize(
    "text", ["3", "fast", "0.6", "1x", "1.2x", "0x", "0ms", "-3ms", "3s", "nanms", "0.6xms", "", "1e3ms"]
)
def test_anything_else_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(RecipeError, match="latency_budget") as error:
        parse_budget(text)
    assert "\n" not in str(error.value)
