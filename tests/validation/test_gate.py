"""Drops have the right sign and interval, and gates pass and fail where they should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convnext_deploy.errors import DataError
from convnext_deploy.recipe import Gate
from convnext_deploy.validation.gate import Drop, Verdict, judge, measure_drop
from convnext_deploy.validation.score import Score
from convnext_deploy.validation.statistics import paired_difference_interval


def score(predictions: list[int], labels: list[int]) -> Score:
    correct = sum(p == label for p, label in zip(predictions, labels, strict=True))
    return Score(correct, len(labels), tuple(predictions), tuple(labels))


def scores(both: int, only_baseline: int, only_new: int, neither: int) -> tuple[Score, Score]:
    """Return a new artifact's score and its baseline's; wrong guesses of the two differ."""
    labels = [0] * (both + only_baseline + only_new + neither)
    new = [0] * both + [1] * only_baseline + [0] * only_new + [1] * neither
    baseline = [0] * both + [0] * only_baseline + [2] * only_new + [2] * neither
    return score(new, labels), score(baseline, labels)


def top1(correct: int, total: int = 1000) -> Score:
    return score([0] * correct + [1] * (total - correct), [0] * total)


def drop(pp: float) -> Drop:
    return Drop(pp, (pp - 1, pp + 1), 0.99)


def test_measure_drop_is_positive_when_the_artifact_got_worse() -> None:
    new, baseline = scores(80, 10, 4, 6)
    found = measure_drop(new, baseline)
    assert found.top1_drop_pp == pytest.approx(6.0)
    assert found.agreement == pytest.approx(0.80)
    low, high = paired_difference_interval(80, 10, 4, 6)
    assert found.interval_pp == pytest.approx((100 * low, 100 * high))
    assert found.interval_pp[0] < 6.0 < found.interval_pp[1]


def test_measure_drop_is_negative_when_the_artifact_got_better() -> None:
    new, baseline = scores(80, 10, 4, 6)
    there, back = measure_drop(new, baseline), measure_drop(baseline, new)
    assert back.top1_drop_pp == -there.top1_drop_pp
    assert back.interval_pp == pytest.approx((-there.interval_pp[1], -there.interval_pp[0]))
    assert back.agreement == there.agreement


def test_measure_drop_is_zero_when_the_predictions_are_the_same() -> None:
    same = score([0, 1, 2, 0, 1], [0, 1, 2, 2, 2])
    found = measure_drop(same, same)
    assert (found.top1_drop_pp, found.agreement) == (0.0, 1.0)
    assert found.interval_pp[0] == pytest.approx(-found.interval_pp[1])


def test_measure_drop_counts_agreement_on_wrong_guesses_too() -> None:
    labels = [0, 0, 0, 0]
    assert measure_drop(score([1, 2, 0, 0], labels), score([1, 1, 0, 3], labels)).agreement == 0.5


def test_measure_drop_equals_difference_of_counts_for_random_predictions() -> None:
    rng = np.random.default_rng(0)
    labels, new, baseline = rng.integers(0, 3, (3, 300)).tolist()
    found = measure_drop(score(new, labels), score(baseline, labels))
    right, right_before = np.equal(new, labels), np.equal(baseline, labels)
    assert found.top1_drop_pp == pytest.approx(100 * (right_before.mean() - right.mean()))
    cells = [
        int(((right_before == before) & (right == now)).sum())
        for before, now in itertools.product((True, False), repeat=2)
    ]
    assert found.interval_pp == pytest.approx(tuple(100 * end for end in paired_difference_interval(*cells)))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 1, 2], [1, 0, 2, 2]])
def test_measure_drop_refuses_when_labels_differ(labels: list[int]) -> None:
    with pytest.raises(DataError, match="not of the same images") as caught:
        measure_drop(score([0] * len(labels), labels), score([0] * 4, [0, 1, 2, 2]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("correct", [0, 899, 900, 1000])
@pytest.mark.parametrize("measured", [None, -3.0, 0.0, 0.5, 0.51, 100.0])
@pytest.mark.parametrize("min_top1", [None, 0.0, 0.9, 1.0])
@pytest.mark.parametrize("max_drop", [None, 0.0, 0.5])
def test_judge_passes_exactly_what_the_gate_allows(
    correct: int, measured: float | None, min_top1: float | None, max_drop: float | None
) -> None:
    found = judge(top1(correct), None if measured is None else drop(measured), Gate(max_drop, min_top1))
    failures = []
    if min_top1 is not None and correct / 1000 < min_top1:
        failures.append("is below")
    if max_drop is not None and measured is not None and measured > max_drop:
        failures.append("drops by")
    judged = min_top1 is not None or (max_drop is not None and measured is not None)
    assert found.passed is (not failures if judged else None)
    assert len(found.reasons) == len(failures)
    assert all(words in reason for words, reason in zip(failures, found.reasons, strict=True))


def test_judge_says_what_was_found_and_asked_for() -> None:
    assert judge(top1(899), drop(1.234), Gate(0.5, 0.9)) == Verdict(
        False,
        (
            "top-1 89.90 % is below the 90.00 % asked for",
            "top-1 drops by 1.23 pp, more than the 0.50 pp allowed",
        ),
    )


def test_judge_passes_when_the_drop_is_the_limit_itself() -> None:
    for allowed, total in ((0.1, 1000), (0.3, 1000), (0.7, 1000), (0.2, 500)):
        lost = round(allowed / 100 * total)
        new, baseline = scores(total - lost, lost, 0, 0)
        measured = measure_drop(new, baseline)
        assert judge(new, measured, Gate(allowed)).passed
        worse, baseline = scores(total - lost - 1, lost + 1, 0, 0)
        assert judge(worse, measure_drop(worse, baseline), Gate(allowed)).passed is False
