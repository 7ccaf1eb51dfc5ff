"""The expected calibration error by hand, and intervals that hold the true increase, of calibrated networks too."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.evaluation.calibration import compare_calibration
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics import calibration
from convnext_deploy.metrics.calibration import measure_calibration

Answers = tuple[NDArray[np.float64], NDArray[np.bool_]]


def test_ece_is_the_gap_of_each_bin_weighted_by_its_images() -> None:
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.30, 0.30, 0.62, 0.66])
    right = np.array([True, True, True, False, False, True, True, False])
    # bins ]14/15, 1]: 0.75 against 0.95; ]4/15, 5/15]: 0.5 against 0.3; ]9/15, 10/15]: 0.5 against 0.64
    expected = (4 * 0.20 + 2 * 0.20 + 2 * 0.14) / 8
    found = measure_calibration(confidences, right)
    assert found.ece == pytest.approx(expected)
    assert 0 <= found.interval[0] <= found.ece <= found.interval[1] <= 1
    assert (found.increase_pp, found.increase_interval_pp) == (None, None)


def test_bins_are_closed_on_the_right_as_in_the_paper() -> None:
    """Right and wrong in one bin cancel, in two they do not."""
    right = np.array([True, False])
    assert measure_calibration(np.array([1 / 15, 0.9 / 15]), right).ece == pytest.approx(abs(1 - 1.9 / 15) / 2)
    assert measure_calibration(np.array([1 / 15, 1.1 / 15]), right).ece == pytest.approx((1 - 1 / 15 + 1.1 / 15) / 2)
    assert measure_calibration(np.array([0.0, 1.0]), np.array([False, True])).ece == 0.0


def test_increase_is_in_percentage_points_and_changes_its_sign_with_the_order() -> None:
    right = np.arange(300) % 3 > 0
    sure, fair = np.full(300, 0.90), np.full(300, 2 / 3)
    there = measure_calibration(sure, right, (fair, right))
    back = measure_calibration(fair, right, (sure, right))
    assert there.increase_pp == pytest.approx(100 * (0.90 - 2 / 3))
    assert there.increase_interval_pp is not None
    assert there.increase_interval_pp[0] > 10
    assert back.increase_pp == pytest.approx(-(there.increase_pp or 0))
    assert back.increase_interval_pp == pytest.approx(tuple(-end for end in there.increase_interval_pp[::-1]), abs=1.5)


def test_same_answers_leave_open_what_no_change_in_so_many_images_does() -> None:
    confidences, right = np.linspace(0.3, 1, 540), np.arange(540) % 5 > 0
    found = measure_calibration(confidences, right, (confidences, right))
    unseen = 100 * 1.959964**2 / (540 + 1.959964**2)
    assert found.increase_pp == 0.0
    assert found.increase_interval_pp == pytest.approx((-unseen, unseen), rel=1e-4)
    certain = measure_calibration(np.ones(20), np.ones(20, bool), (np.ones(20), np.ones(20, bool)))
    assert certain.ece == 0.0
    assert certain.interval[1] > 0.15, "20 right answers do not prove that certainty is justified"
    assert measure_calibration(np.ones(1), np.ones(1, bool)).interval[1] > 0.7


def answers(rng: np.random.Generator, count: int, sharper: float, noise: float) -> tuple[Answers, Answers]:
    """Return what a network answers that knows its probabilities exactly, and one that is surer by a factor."""
    labels = rng.integers(0, 10, count)
    evidence = rng.normal(size=(count, 10))
    evidence[np.arange(count), labels] += 3.0
    found = []
    for logits in (3.0 * evidence, sharper * (3.0 * evidence + noise * rng.normal(size=(count, 10)))):
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        found.append((shares.max(axis=1), shares.argmax(axis=1) == labels))
    return found[0], found[1]


@pytest.mark.parametrize(("sharper", "noise"), [(1.0, 0.1), (1.5, 0.2), (1.0, 1.5)])
def test_interval_holds_the_true_increase_of_a_calibrated_network(
    sharper: float, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 trials of 200 images; a plain bootstrap held it in 37 % of the trials where the network became overconfident."""
    monkeypatch.setattr(calibration, "_DRAWS", 400)
    rng = np.random.default_rng(1)
    before, now = answers(rng, 40_000, sharper, noise)
    truth = measure_calibration(*now, before).increase_pp
    assert truth is not None
    held = 0
    for _ in range(60):
        before, now = answers(rng, 200, sharper, noise)
        interval = measure_calibration(*now, before).increase_interval_pp
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert held >= 56


def test_compare_calibration_needs_probabilities_of_both() -> None:
    with_them = Score(1, 2, (0, 1), (0, 0), (0.9, 0.6))
    without = Score(1, 2, (0, 1), (0, 0))
    assert compare_calibration(without, with_them) is None
    alone = compare_calibration(with_them, without)
    assert alone is not None
    assert alone == compare_calibration(with_them)
    assert alone.increase_pp is None
    both = compare_calibration(with_them, with_them)
    assert both is not None
    assert both.increase_pp == 0.0
