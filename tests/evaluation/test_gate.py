"""Drops have the right sign and interval, and gates pass and fail where they should."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from convnext_deploy.config.recipe import Gate
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.evaluation.gate import Verdict, judge, measure_drop
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.intervals import paired_difference_interval
from convnext_deploy.metrics.paired import Drop, images_needed, mcnemar_p_value


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


def drop(pp: float, half_width: float = 1.0, lost: int = 0, gained: int = 0) -> Drop:
    return Drop(900, lost, gained, 100, 0.99, pp, (pp - half_width, pp + half_width), 1.0)


def test_measure_drop_is_positive_when_the_artifact_got_worse() -> None:
    new, baseline = scores(80, 10, 4, 6)
    found = measure_drop(new, baseline)
    assert found.top1_drop_pp == pytest.approx(6.0)
    assert found.agreement == pytest.approx(0.80)
    low, high = paired_difference_interval(80, 10, 4, 6)
    assert found.interval_pp == pytest.approx((100 * low, 100 * high))
    assert found.interval_pp[0] < 6.0 < found.interval_pp[1]
    assert (found.both, found.lost, found.gained, found.neither) == (80, 10, 4, 6)
    assert found.p_value == mcnemar_p_value(10, 4)


def test_measure_drop_is_negative_when_the_artifact_got_better() -> None:
    new, baseline = scores(80, 10, 4, 6)
    there, back = measure_drop(new, baseline), measure_drop(baseline, new)
    assert back.top1_drop_pp == -there.top1_drop_pp
    assert back.interval_pp == pytest.approx((-there.interval_pp[1], -there.interval_pp[0]))
    assert back.agreement == there.agreement
    assert (back.lost, back.gained, back.p_value) == (there.gained, there.lost, there.p_value)


def test_measure_drop_is_zero_when_the_predictions_are_the_same() -> None:
    same = score([0, 1, 2, 0, 1], [0, 1, 2, 2, 2])
    found = measure_drop(same, same)
    assert (found.top1_drop_pp, found.agreement) == (0.0, 1.0)
    assert (found.lost, found.gained, found.p_value) == (0, 0, 1.0)
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


def test_judge_passes_exactly_what_the_gate_allows() -> None:
    for case in itertools.product(
        (0, 899, 900, 1000), (None, -3.0, 0.0, 0.5, 0.51, 100.0), (None, 0.0, 0.9, 1.0), (None, 0.0, 0.5)
    ):
        correct, measured, min_top1, max_drop = case
        found = judge(top1(correct), None if measured is None else drop(measured), Gate(max_drop, min_top1))
        failures = []
        if min_top1 is not None and correct / 1000 < min_top1:
            failures.append("is below")
        if max_drop is not None and measured is not None and measured > max_drop:
            failures.append("drops by")
        judged = min_top1 is not None or (max_drop is not None and measured is not None)
        assert found.passed is (not failures if judged else None), case
        assert len(found.reasons) == len(failures), case
        assert all(words in reason for words, reason in zip(failures, found.reasons, strict=True)), case


def test_judge_says_what_was_found_and_asked_for() -> None:
    assert judge(top1(899), drop(1.734), Gate(0.5, 0.9)) == Verdict(
        False,
        ("top-1 89.90 % is below the 90.00 % asked for", "top-1 drops by 1.73 pp, more than the 0.50 pp allowed"),
        proven=False,
    )


def test_judge_passes_when_the_drop_is_the_limit_itself() -> None:
    for allowed, total in ((0.1, 1000), (0.3, 1000), (0.7, 1000), (0.2, 500)):
        lost = round(allowed / 100 * total)
        new, baseline = scores(total - lost, lost, 0, 0)
        measured = measure_drop(new, baseline)
        assert judge(new, measured, Gate(allowed)).passed
        worse, baseline = scores(total - lost - 1, lost + 1, 0, 0)
        assert judge(worse, measure_drop(worse, baseline), Gate(allowed)).passed is False


@pytest.mark.parametrize(
    ("measured", "half_width", "on", "passed"),
    [
        (0.4, 0.05, "point", True),
        (0.4, 0.05, "upper", True),
        (0.4, 0.2, "point", True),
        (0.4, 0.2, "upper", False),
        (0.6, 0.2, "point", False),
        (0.6, 0.2, "upper", False),
        (-1.0, 1.5, "upper", True),  # ends at the limit itself
        (-1.0, 1.51, "upper", False),
    ],
)
def test_judge_looks_at_what_the_gate_is_on(measured: float, half_width: float, on: Any, passed: bool) -> None:
    verdict = judge(top1(900), drop(measured, half_width), Gate(max_top1_drop_pp=0.5, on=on))
    assert verdict.passed is passed
    assert verdict.proven is (measured + half_width <= 0.5)


def test_judge_on_the_upper_end_says_where_the_interval_ends() -> None:
    gate = Gate(max_top1_drop_pp=0.5, on="upper")
    assert judge(top1(900), drop(0.1, 0.75), gate).reasons == (
        "the 95 % interval of the top-1 drop ends at +0.85 pp, above the 0.50 pp allowed (measured: +0.10 pp)",
    )
    (reason,) = judge(top1(900), drop(0.1, 0.4001), gate).reasons
    assert "ends at +0.50010 pp, above the 0.50 pp allowed" in reason


def test_judge_on_the_upper_end_equals_a_limit_on_the_interval_of_real_scores() -> None:
    new, baseline = scores(950, 12, 8, 30)
    measured = measure_drop(new, baseline)
    high = measured.interval_pp[1]
    assert judge(new, measured, Gate(max_top1_drop_pp=high + 0.001, on="upper")).passed is True
    assert judge(new, measured, Gate(max_top1_drop_pp=high - 0.001, on="upper")).passed is False
    assert judge(new, measured, Gate(max_top1_drop_pp=high - 0.001)).passed is True


def test_judge_names_the_images_that_would_do_when_there_are_too_few() -> None:
    new, baseline = scores(519, 5, 3, 13)
    measured = measure_drop(new, baseline)
    verdict = judge(new, measured, Gate(max_top1_drop_pp=0.5))
    low, high = measured.interval_pp
    assert low < 0 < measured.top1_drop_pp < 0.5 < high
    assert (verdict.passed, verdict.proven) == (True, False)
    assert verdict.images_needed == images_needed(0.005, 8 / 540) == 4649
    assert verdict.notes == (
        f"540 images cannot tell whether top-1 drops by more than 0.50 pp (95 % interval {low:+.2f} to {high:+.2f} pp); "
        "about 4,700 would do if nothing was lost",
    )


def test_judge_names_the_images_that_would_do_when_a_gate_failed_too() -> None:
    new, baseline = scores(519, 8, 3, 10)
    verdict = judge(new, measure_drop(new, baseline), Gate(max_top1_drop_pp=0.5))
    assert (verdict.passed, verdict.proven, len(verdict.notes)) == (False, False, 1)
    assert verdict.images_needed == images_needed(0.005, 11 / 540)


@pytest.mark.parametrize(
    ("measured", "half_width", "total", "too_few"),
    [
        (0.0, 0.6, 1567, True),
        (0.0, 0.6, 1568, False),  # so many are needed for 0.5 pp when no image changed sides
        (0.0, 0.4, 1000, False),  # proven whatever their number
        (3.0, 1.0, 1000, False),  # disproven likewise
        (1.5, 1.0, 1000, True),  # may be just what is allowed
    ],
)
def test_judge_finds_too_few_images_only_where_more_would_tell(
    measured: float, half_width: float, total: int, too_few: bool
) -> None:
    verdict = judge(top1(total, total), drop(measured, half_width), Gate(max_top1_drop_pp=0.5))
    assert (verdict.images_needed is not None) is too_few
    assert any("images cannot tell" in note for note in verdict.notes) is too_few


def test_judge_says_that_a_drop_is_near_its_limit_when_the_images_are_enough() -> None:
    verdict = judge(top1(10_000, 10_000), drop(0.4, 0.2, 30, 10), Gate(max_top1_drop_pp=0.5))
    assert (verdict.passed, verdict.proven, verdict.images_needed) == (True, False, None)
    assert verdict.notes == (
        "passed by what was measured; the drop may be more than 0.50 pp (95 % interval +0.20 to +0.60 pp)",
    )
    assert judge(top1(10_000, 10_000), drop(0.6, 0.2, 50, 10), Gate(max_top1_drop_pp=0.5)).notes == ()


def test_judge_on_no_loss_at_all_speaks_of_these_images_only() -> None:
    new, baseline = scores(520, 0, 0, 20)
    assert judge(new, measure_drop(new, baseline), Gate(max_top1_drop_pp=0.0)) == Verdict(True)
    worse, baseline = scores(519, 1, 0, 20)
    verdict = judge(worse, measure_drop(worse, baseline), Gate(max_top1_drop_pp=0.0))
    assert (verdict.passed, verdict.proven, verdict.notes) == (False, None, ())


def test_judge_without_a_drop_gate_says_nothing_of_certainty() -> None:
    for gate in (Gate(), Gate(min_top1=0.5)):
        verdict = judge(top1(900), drop(0.4, 3.0), gate)
        assert (verdict.proven, verdict.images_needed, verdict.notes) == (None, None, ())


@pytest.mark.parametrize(("limit", "discordant", "said"), [(0.05, 0, "16,000"), (2.0, 40, "2,000"), (20.0, 100, "41")])
def test_judge_rounds_the_number_of_images_up_to_two_digits(limit: float, discordant: int, said: str) -> None:
    total = 23 if limit == 20.0 else 400
    measured = drop(0.0, 50.0, discordant * total // 400, 0)
    (note,) = judge(top1(total, total), measured, Gate(max_top1_drop_pp=limit)).notes
    assert f"about {said} would do" in note


@pytest.mark.parametrize("on", ["lower", "", None, True])
def test_gate_refuses_other_ends(on: Any) -> None:
    with pytest.raises(RecipeError, match=r"on = .* is unknown; expected one of 'point', 'upper'"):
        Gate(max_top1_drop_pp=0.5, on=on)


def test_gate_on_the_upper_end_needs_a_limit() -> None:
    with pytest.raises(RecipeError, match="no max_top1_drop_pp is given; give both"):
        Gate(min_top1=0.5, on="upper")
