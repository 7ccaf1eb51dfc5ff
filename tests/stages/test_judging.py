"""When a quantized network is good enough: the risk by hand, how many images it takes, and every field of a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from convnext_deploy.artifacts.details import Step
from convnext_deploy.stages.selection import Enough, Judge


@dataclass
class Given:
    """Images that a network of no layers answers with what they are: their own logits."""

    labels: Tensor
    values: Tensor
    size: int = 3

    @property
    def lengths(self) -> list[int]:
        return [len(batch) for batch in self.values.split(self.size)]

    def numbered(self, numbers: range) -> Iterator[Tensor]:
        batches = self.values.split(self.size)
        return (batches[number] for number in numbers)


def judge_of(reference: Tensor, labels: list[int], budget: float, looks: int = 1) -> Judge:
    images: Any = Given(torch.tensor(labels), reference)
    network: Any = nn.Identity()
    return Judge(network, images, budget, looks=looks)


def answers(choices: list[int], classes: int = 2, size: float = 2.0) -> Tensor:
    """Logits whose largest is that of the class given."""
    return size * torch.eye(classes)[choices]


def bound(costs: list[float], level: float = 0.05) -> float:
    """The upper bound of the mean cost by Stringer's formula, with SciPy's quantiles of the beta distribution, in per cent."""
    largest = np.array(sorted((cost for cost in costs if cost), reverse=True))
    places, count = np.arange(len(largest) + 1), len(costs)
    bounds = np.where(places < count, stats.beta.isf(level, places + 1, np.maximum(count - places, 1)), 1.0)
    return float(100 * (bounds[0] + (np.diff(bounds) * largest).sum()))


def test_every_field_of_a_step() -> None:
    """Of 10 images of class 0 both have 4 right, the float network alone 3, the other one alone 1, none 2."""
    judge = judge_of(answers([0] * 7 + [1] * 3), [0] * 10, 100.0)
    logits = answers([0] * 4 + [1] * 3 + [0] + [1] * 2)
    step = judge.compare("some", logits, 12.5)
    assert (step.name, step.seconds, step.passed) == ("some", 12.5, True)
    assert step.top1 == pytest.approx(0.5)
    assert step.top1_drop_pp == pytest.approx(20.0)
    assert step.agreement == pytest.approx(0.6)
    # four of ten rows are reversed: (p - q) times the two of difference in their logits, each
    p = math.exp(2) / (1 + math.exp(2))
    assert step.kl == pytest.approx(0.4 * 2 * (2 * p - 1), rel=1e-5)
    # signal 10 * 4, noise 4 * 8
    assert step.sqnr_db == pytest.approx(10 * math.log10(40 / 32), rel=1e-5)
    assert step.expected_drop_pp == pytest.approx(100 * 0.4 * (2 * p - 1), rel=1e-5)
    assert step.risk_pp == pytest.approx(bound([2 * p - 1] * 4 + [0.0] * 6), rel=1e-5)


def test_interval_is_that_of_newcombes_tables() -> None:
    """Newcombe 1998, table II: of 50 pairs 36 with both, 12 with the first alone, 2 with the second alone, none without."""
    judge = judge_of(answers([0] * 48 + [1] * 2), [0] * 50, 100.0)
    step = judge.compare("some", answers([0] * 36 + [1] * 12 + [0] * 2), 0.0)
    assert step.top1_drop_pp == pytest.approx(20.0)
    assert step.interval_pp == pytest.approx((5.69, 34.04), abs=0.01)


def verdict(reference: Tensor, logits: Tensor, labels: list[int], budget: float) -> Step:
    return judge_of(reference, labels, budget).compare("some", logits, 0.0)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_answers_that_are_not_finite_never_pass(value: float, column: int) -> None:
    reference = answers([0, 1, 0, 1])
    logits = reference.clone()
    assert verdict(reference, logits, [0, 1, 0, 1], 60.0).passed
    logits[2, column] = value
    step = verdict(reference, logits, [0, 1, 0, 1], 100.0)
    assert (step.passed, step.risk_pp, step.expected_drop_pp) == (False, 100.0, 100.0)
    assert (step.kl, step.sqnr_db) == (None, None)


def test_drop_that_is_certain_fails_though_the_risk_is_small() -> None:
    """The float network is not sure of any answer, so that its probabilities expect nothing; but 100 of 100 were right."""
    reference, logits, labels = answers([0] * 100, size=1e-6), answers([1] * 100), [0] * 100
    step = verdict(reference, logits, labels, 50.0)
    assert step.risk_pp == pytest.approx(bound([0.0] * 100), abs=1e-3)
    low = step.interval_pp[0]
    assert low > 90
    assert not step.passed
    assert not verdict(reference, logits, labels, low - 0.01).passed
    assert verdict(reference, logits, labels, low + 0.01).passed


def test_drop_that_is_uncertain_passes() -> None:
    """One of 500 images is lost, which may be chance; the risk is small, as the float network was not sure of it."""
    reference = answers([0] * 500, size=4.0)
    reference[0] = torch.tensor([0.01, 0.0])
    logits = reference.clone()
    logits[0] = torch.tensor([0.0, 0.01])
    step = verdict(reference, logits, [0] * 500, 0.7)
    assert step.top1_drop_pp == pytest.approx(0.2)
    assert step.interval_pp[0] < 0.7 < step.interval_pp[1]
    assert step.risk_pp == pytest.approx(bound([0.005] + [0.0] * 499), rel=1e-3)
    assert step.passed


def test_risk_over_the_budget_fails_though_nothing_was_lost() -> None:
    """Both changed answers were wrong before and are wrong after: top-1 stays, but on other images it would not."""
    reference, logits, labels = answers([0, 1, 1, 1], 3), answers([2, 2, 1, 1], 3), [1, 0, 1, 1]
    step = verdict(reference, logits, labels, 10.0)
    assert step.top1_drop_pp == 0.0
    p = math.exp(2) / (math.exp(2) + 2)
    risk = bound([p - (1 - p) / 2] * 2 + [0.0] * 2)
    assert step.risk_pp == pytest.approx(risk, rel=1e-5)
    assert not step.passed
    assert not verdict(reference, logits, labels, risk - 0.01).passed
    assert verdict(reference, logits, labels, risk + 0.01).passed


@pytest.mark.parametrize(("count", "passed"), [(8, False), (1496, False), (1497, True)])
def test_answers_that_stay_pass_only_where_there_are_enough_of_them(count: int, passed: bool) -> None:
    """Eight images that keep their answers were a risk of 0.00 pp once; a drop of 0.2 pp takes 1497 to exclude."""
    judge = judge_of(answers([0] * count), [0] * count, 0.2)
    assert judge.enough == Enough(count, 1497, 0.2)
    assert bool(judge.enough) == passed
    step = judge.compare("same", answers([0] * count), 0.0)
    assert (step.passed, step.expected_drop_pp, step.agreement) == (passed, 0.0, 1.0)
    assert step.risk_pp == pytest.approx(100 * (1 - 0.05 ** (1 / count)))
    assert step.risk_pp == pytest.approx(judge.least_risk_pp)


def test_every_look_at_the_same_images_costs_some_of_the_confidence() -> None:
    once, seven, rehearsal = (judge_of(answers([0] * 2000), [0] * 2000, 0.2, looks) for looks in (1, 7, 0))
    steps = [judge.compare("same", answers([0] * 2000), 0.0) for judge in (once, seven, rehearsal)]
    assert [step.passed for step in steps] == [True, False, True]
    assert steps[1].risk_pp == pytest.approx(bound([0.0] * 2000, 0.05 / 7))
    assert steps[2].risk_pp == 0.0
    assert seven.enough.needed == math.ceil(math.log(0.05 / 7) / math.log(1 - 0.002)) == 2469


def test_best_of_seven_steps_is_within_its_bound() -> None:
    """Seven networks that lose 3 of 100 answers are judged on the same 100 images: that none looks better holds for all at once."""
    rng, missed = np.random.default_rng(0), {1: 0, 7: 0}
    reference = answers([0] * 100, size=30.0)
    judges = {looks: judge_of(reference, [0] * 100, 1.0, looks) for looks in missed}
    for _ in range(100):
        networks = [answers((rng.uniform(size=100) < 0.03).astype(int).tolist()) for _ in range(7)]
        for looks, judge in judges.items():
            missed[looks] += any(judge.compare("some", network, 0.0).risk_pp < 3.0 for network in networks)
    assert missed[7] <= 5 < missed[1]


def test_words_for_too_few_images() -> None:
    assert str(Enough(346, 2813, 0.2)) == "346 images are too few to tell a drop of 0.20 pp, which takes at least 2,813"
    assert str(Enough(1, 2813, 0.2)).startswith("1 image is too few to tell")
    assert str(Enough(10_000, None, 0.0)) == "no number of images can show a drop of at most 0.00 pp"
    assert not Enough(10_000, None, 0.0)


def test_networks_are_run_in_the_order_of_the_labels() -> None:
    """Ten images in batches of three: the last one is smaller, and no row may move."""
    reference = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    judge = judge_of(reference, [0] * 10, 0.0)
    assert torch.equal(judge.reference, reference)
    shift: Any = nn.Linear(4, 4)
    with torch.no_grad():
        shift.weight.copy_(torch.eye(4).roll(1, 0))
        shift.bias.zero_()
    logits = judge.logits(shift)
    assert torch.equal(logits, reference.roll(1, 1))
    assert not logits.requires_grad
    step = judge.judge("turned", shift, 3.0)
    assert (step.name, step.seconds, step.agreement) == ("turned", 3.0, 0.0)
