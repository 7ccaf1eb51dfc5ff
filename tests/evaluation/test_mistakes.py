"""Where a classifier errs, counted by hand."""

from __future__ import annotations

import pytest

from convnext_deploy.evaluation.mistakes import (
    WHOLE_UP_TO,
    ClassScore,
    Confusion,
    SureError,
    find_confusions,
    find_sure_errors,
    score_classes,
)
from convnext_deploy.evaluation.score import Score

LABELS = (0, 0, 1, 1, 3, 3)
SCORE = Score(3, 6, (0, 1, 1, 0, 3, 1), LABELS, (0.9, 0.8, 0.7, 0.95, 0.6, 0.8))
BASELINE = Score(4, 6, (0, 0, 1, 0, 3, 0), LABELS, (0.9,) * 6)


def test_classes_without_images_have_no_score() -> None:
    assert score_classes(SCORE) == (ClassScore(0, 2, 1), ClassScore(1, 2, 1), ClassScore(3, 2, 1))


def test_confusions_are_counted_beside_those_of_the_baseline() -> None:
    assert find_confusions(SCORE) == (Confusion(0, 1, 1), Confusion(1, 0, 1), Confusion(3, 1, 1))
    assert find_confusions(SCORE, BASELINE) == (
        Confusion(1, 0, 1, 1),
        Confusion(0, 1, 1, 0),
        Confusion(3, 1, 1, 0),
        Confusion(3, 0, 0, 1),  # a pair that only the baseline has is gone
    )


def test_all_pairs_of_few_classes_are_kept_and_of_many_the_largest_and_those_that_changed() -> None:
    labels = tuple(range(200)) * 2
    wrong = tuple((label + 1) % 200 for label in range(200))
    many = Score(0, 0, wrong * 2, labels)
    kept = find_confusions(many)
    assert len(kept) == 40
    assert kept[0] == Confusion(0, 1, 2)
    other = Score(0, 0, (*wrong[:199], 150, *wrong), labels)
    assert Confusion(199, 150, 1, 0) in find_confusions(other, many)
    labels = tuple(range(WHOLE_UP_TO))
    few = Score(0, 0, (*labels[1:], 0), labels)
    assert len(find_confusions(few)) == WHOLE_UP_TO


@pytest.mark.parametrize("most", [2, 9])
def test_surest_errors_come_first_and_equal_ones_in_order(most: int) -> None:
    found = find_sure_errors(SCORE, lambda index: f"{index}.png", most)
    assert (
        found
        == (SureError(3, "3.png", 1, 0, 0.95), SureError(1, "1.png", 0, 1, 0.8), SureError(5, "5.png", 3, 1, 0.8))[
            :most
        ]
    )


def test_no_error_is_sure_where_probabilities_are_not_known() -> None:
    assert find_sure_errors(Score(0, 0, (1,), (0,)), lambda index: None, 8) == ()


def test_perfect_score_confuses_nothing() -> None:
    assert find_confusions(Score(2, 2, (0, 1), (0, 1), (1.0, 1.0))) == ()
