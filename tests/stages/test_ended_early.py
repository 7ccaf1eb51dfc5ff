"""A step that cannot pass any more is not judged on, and what is chosen and reported of the choice is the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.details import PTQRecord, Selection, Step
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.reports.stage_table import STEP_COLUMNS, step_cells
from convnext_deploy.stages.drop_bound import UnseenImages
from convnext_deploy.stages.search import Search
from convnext_deploy.stages.selection import Judge
from tests.stages.test_judging import answers

COUNT, SIZE, BUDGET = 2000, 100, 1.0


@dataclass
class Numbers:
    """Images that are their own numbers, as pixels of a network that looks its answers up."""

    labels: Tensor
    asked: list[int] = field(default_factory=list)  # images that were run, of every network

    @property
    def lengths(self) -> list[int]:
        return [SIZE] * (COUNT // SIZE)

    def numbered(self, numbers: range) -> Any:
        for number in numbers:
            self.asked.append(SIZE)
            yield torch.arange(number * SIZE, (number + 1) * SIZE)


class Table(nn.Module):
    """Answers with the class of its table."""

    def __init__(self, chosen: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", answers(chosen.tolist(), size=4.0))

    def forward(self, numbers: Tensor) -> Tensor:
        rows: Tensor = self.rows  # type: ignore[assignment]  # a buffer
        return rows[numbers]


def table(every: int | None) -> Any:
    """Answer 0, and to every so manyth image 1."""
    chosen = torch.zeros(COUNT, dtype=torch.int64)
    if every is not None:
        chosen[every - 1 :: every] = 1
    return Table(chosen)


def judge_of(looks: int = 6, unseen: UnseenImages | None = None) -> tuple[Judge, Numbers]:
    images = Numbers(torch.zeros(COUNT, dtype=torch.int64))
    judge = Judge(table(None), images, BUDGET, unseen, looks)  # type: ignore[arg-type]  # what it takes of images
    images.asked.clear()
    return judge, images


UNSEEN = UnseenImages(answers([0] * 50, size=3.0), torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize("unseen", [None, UNSEEN])
@pytest.mark.parametrize("every", [10, 40, 60, 400, 1000, None])
@pytest.mark.parametrize("looks", [0, 6])
def test_step_that_is_ended_fails_with_all_images_too(
    every: int | None, unseen: UnseenImages | None, looks: int
) -> None:
    judge, images = judge_of(looks, unseen)
    whole = judge.judge("some", table(every))
    images.asked.clear()
    step = judge.judge("some", table(every), limit_pp=BUDGET, may_go_on=False)
    assert step.passed == whole.passed
    if step.judged is None:
        assert step == whole
        return
    assert every in (10, 40, 60)
    assert sum(images.asked) == step.judged < COUNT
    assert BUDGET < step.risk_pp <= whole.risk_pp
    # the other figures are of the images that were judged
    assert step.top1 == pytest.approx(1 - 1 / every, abs=1 / step.judged)
    assert step.agreement == step.top1


def test_clear_failure_takes_a_tenth_of_the_images() -> None:
    judge, images = judge_of()
    assert judge.judge("some", table(10), limit_pp=BUDGET).judged == 200
    assert sum(images.asked) == 200


def test_ended_step_goes_on_where_it_was_and_comes_to_the_same() -> None:
    judge, images = judge_of()
    whole = judge.judge("whole", table(40))
    images.asked.clear()
    first = judge.judge("some", table(40), limit_pp=BUDGET)
    assert first.judged is not None
    assert judge.judge("some", table(40)) == dataclasses.replace(whole, name="some")
    assert sum(images.asked) == COUNT


def test_answer_that_is_not_finite_ends_at_once() -> None:
    judge, _ = judge_of()
    broken = table(None)
    broken.rows[:] = math.nan
    step = judge.judge("some", broken, limit_pp=BUDGET)
    assert (step.judged, step.passed) == (SIZE, False)
    assert step.risk_pp > BUDGET


def search_among(judge: Judge, tables: Mapping[str, int | None]) -> tuple[Search, dict[str, Any]]:
    """Try all in order as `quantize` does: the last one is judged by all images, and nothing passes before it."""
    networks = {name: table(every) for name, every in tables.items()}
    search, scheme = Search(BUDGET, judge.enough), resolve_scheme("tensorrt")
    for name, network in networks.items():
        limit = math.inf if name == list(tables)[-1] else BUDGET
        search.take(judge.judge(name, network, limit_pp=limit), network, scheme, PTQRecord(1))
    search.judge_the_rest(judge)
    return search, networks


@pytest.mark.parametrize(
    ("tables", "chosen"),
    [
        ({"a": 10, "b": 40, "c": 60}, "c"),
        ({"a": 10, "b": 60, "c": 40}, "b"),
        ({"a": 40, "b": 40, "c": 40}, "a"),  # the cheapest of equals
        ({"a": 10, "b": 40, "c": 400}, "c"),  # it passes
    ],
)
def test_best_of_those_that_were_ended_is_the_best_of_all(tables: dict[str, int], chosen: str) -> None:
    judge, images = judge_of()
    whole = {name: judge.judge(name, table(every)) for name, every in tables.items()}
    best = next((step for step in whole.values() if step.passed), None)
    best = best or min(whole.values(), key=lambda step: step.risk_pp)
    images.asked.clear()
    search, networks = search_among(judge, tables)
    assert (search.chosen, search.network) == (best, networks[chosen])
    assert search.chosen.name == chosen
    assert sum(images.asked) <= len(tables) * COUNT
    if chosen != "a":
        assert search.steps[0].judged is not None  # what is far from the best was never judged by all
    assert [step.name for step in search.steps] == list(tables)
    assert not search.ended


def test_report_says_after_how_many_images() -> None:
    judge, _ = judge_of()
    step = judge.judge("some", table(10), limit_pp=BUDGET)
    cells = dict(zip(STEP_COLUMNS, step_cells(step, selection_with(step)), strict=True))
    assert f"≥ {step.risk_pp:.2f}" in cells.values()
    assert step_cells(step, selection_with(step))[-1] == "failed after 200 images"
    whole = step_cells(dataclasses.replace(step, judged=None), selection_with(step))
    assert whole[-1] == ""


def selection_with(step: Step) -> Selection:
    return Selection((step,), "other", "why", BUDGET, images=COUNT)
