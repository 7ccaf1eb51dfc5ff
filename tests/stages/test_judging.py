"""When a quantized network is good enough: the risk by hand and in simulation, and every field of a verdict."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.artifacts.details import Step
from convnext_deploy.stages.selection import Judge, expected_drop_pp

Z95 = 1.6448536  # 95 % quantile of the normal distribution
ON = 10_000  # images that a risk speaks of


@dataclass
class Given:
    """Images that a network of no layers answers with what they are: their own logits."""

    labels: Tensor
    values: Tensor
    size: int = 3

    def batches(self) -> list[Tensor]:
        return list(self.values.split(self.size))


def judge_of(reference: Tensor, labels: list[int], budget: float) -> Judge:
    images: Any = Given(torch.tensor(labels), reference)
    network: Any = nn.Identity()
    return Judge(network, images, budget)


def answers(choices: list[int], classes: int = 2, size: float = 2.0) -> Tensor:
    """Logits whose largest is that of the class given."""
    return size * torch.eye(classes)[choices]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def test_risk_of_one_changed_answer_of_four() -> None:
    """With p = 0.9 and 0.1 for the one that changed, a quarter of 0.8 is lost, and chance adds sqrt(0.25) / 100 times 1.645."""
    reference = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]).log()
    logits = torch.tensor([[0.0, 1.0], [3.0, 0.0], [-7.0, 0.0], [1.0, 0.0]])
    assert expected_drop_pp(reference, logits) == pytest.approx(100 * 0.25 * 0.8 + Z95 * 0.5, abs=1e-4)


def test_risk_of_an_even_choice_is_chance_alone() -> None:
    reference = torch.tensor([[0.5, 0.5]]).log()
    assert expected_drop_pp(reference, torch.tensor([[0.0, 1.0]])) == pytest.approx(Z95, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_risk_is_that_of_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, logits = rng.normal(0, 3, (200, 7)), rng.normal(0, 3, (200, 7))
    logits[:80] = reference[:80]
    p, before, now = softmax(reference), reference.argmax(1), logits.argmax(1)
    lost = [p[row, before[row]] - p[row, now[row]] for row in range(200) if before[row] != now[row]]
    expected = 100 * (sum(lost) / 200 + Z95 * math.sqrt(len(lost) / 200) / math.sqrt(ON))
    assert expected_drop_pp(torch.tensor(reference), torch.tensor(logits)) == pytest.approx(expected, rel=1e-6)


def test_risk_is_zero_when_no_answer_changes() -> None:
    reference = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    assert expected_drop_pp(reference, reference) == 0.0
    assert expected_drop_pp(reference, 3 * reference + 1) == 0.0


def test_risk_grows_with_every_changed_answer() -> None:
    reference = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    logits, risks = reference.clone(), [0.0]
    for row in range(40):
        logits[row] *= -1
        risks.append(expected_drop_pp(reference, logits))
    assert all(first < second for first, second in itertools.pairwise(risks))


def test_risk_grows_with_how_sure_the_float_network_was() -> None:
    logits = answers([1])
    risks = [expected_drop_pp(torch.tensor([[size, 0.0]]), logits) for size in (0.1, 1.0, 3.0, 9.0)]
    assert risks == sorted(set(risks))
    assert risks[-1] == pytest.approx(100 + Z95, abs=0.1)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_true_drop_is_within_the_risk_in_95_of_100_draws(noise: float) -> None:
    """The labels are drawn by the float network's own probabilities, which so are right."""
    rng = np.random.default_rng(int(1000 * noise))
    reference = rng.normal(0, 2, (ON, 10))
    logits = reference + rng.normal(0, noise, reference.shape)
    risk = expected_drop_pp(torch.tensor(reference), torch.tensor(logits))
    p, before, now = softmax(reference), reference.argmax(1), logits.argmax(1)
    # of an image whose answer changed, the first answer was right with p_a and the second with p_b
    changed = np.flatnonzero(before != now)
    u = rng.random((2000, len(changed)))
    p_a, p_b = p[changed, before[changed]], p[changed, now[changed]]
    drops = 100 * ((u < p_a).sum(1) - ((u >= p_a) & (u < p_a + p_b)).sum(1)) / ON
    assert (drops <= risk).mean() >= 0.95
    # and it is no more than twice what chance makes of the mean
    assert risk - drops.mean() < 2 * 1.645 * drops.std()


def test_risk_of_few_images_covers_the_drop_of_many() -> None:
    """Two hundred draws of 1000 selection images and of the 10,000 others that are judged: nearly all are covered."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        reference = rng.normal(0, 2, (1000 + ON, 10)).astype(np.float32)
        logits = reference + rng.normal(0, 0.2, reference.shape).astype(np.float32)
        risk = expected_drop_pp(torch.from_numpy(reference[:1000]), torch.from_numpy(logits[:1000]))
        p = softmax(reference[1000:].astype(np.float64))
        labels = (p.cumsum(1) > rng.random((ON, 1))).argmax(1)
        right_before, right = (each[1000:].argmax(1) == labels for each in (reference, logits))
        covered += 100 * (right_before.mean() - right.mean()) <= risk
    assert covered >= 0.95 * 200


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
    assert step.risk_pp == pytest.approx(100 * 0.4 * (2 * p - 1) + Z95 * math.sqrt(0.4), rel=1e-5)


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
    assert verdict(reference, logits, [0, 1, 0, 1], 0.0).passed
    logits[2, column] = value
    step = verdict(reference, logits, [0, 1, 0, 1], 100.0)
    assert (step.passed, step.risk_pp, step.kl, step.sqnr_db) == (False, 100.0, None, None)


def test_drop_that_is_certain_fails_though_the_risk_is_small() -> None:
    """The float network is not sure of any answer, so that its probabilities expect nothing; but 100 of 100 were right."""
    reference, logits, labels = answers([0] * 100, size=1e-6), answers([1] * 100), [0] * 100
    step = verdict(reference, logits, labels, 50.0)
    assert step.risk_pp == pytest.approx(Z95, abs=1e-3)
    low = step.interval_pp[0]
    assert low > 90
    assert not step.passed
    assert not verdict(reference, logits, labels, low - 0.01).passed
    assert verdict(reference, logits, labels, low + 0.01).passed


def test_drop_that_is_uncertain_passes() -> None:
    """One of ten images is lost, which may be chance; the risk is small, as the float network was not sure of it."""
    reference = answers([0] * 10, size=4.0)
    reference[0] = torch.tensor([0.01, 0.0])
    logits = reference.clone()
    logits[0] = torch.tensor([0.0, 0.01])
    step = verdict(reference, logits, [0] * 10, 1.0)
    assert step.top1_drop_pp == pytest.approx(10.0)
    assert step.interval_pp[0] < 1.0 < step.interval_pp[1]
    assert step.risk_pp < 1.0
    assert step.passed


def test_risk_over_the_budget_fails_though_nothing_was_lost() -> None:
    """Both changed answers were wrong before and are wrong after: top-1 stays, but on other images it would not."""
    reference, logits, labels = answers([0, 1, 1, 1], 3), answers([2, 2, 1, 1], 3), [1, 0, 1, 1]
    step = verdict(reference, logits, labels, 10.0)
    assert step.top1_drop_pp == 0.0
    p = softmax(np.array([[2.0, 0.0, 0.0]]))[0]
    risk = 100 * 0.5 * (p[0] - p[1]) + Z95 * math.sqrt(0.5)
    assert step.risk_pp == pytest.approx(risk, rel=1e-5)
    assert not step.passed
    assert not verdict(reference, logits, labels, risk - 0.01).passed
    assert verdict(reference, logits, labels, risk + 0.01).passed


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
