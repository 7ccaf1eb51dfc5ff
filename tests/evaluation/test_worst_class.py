"""The class that loses most, with an interval that holds for all classes together."""

from __future__ import annotations

import numpy as np
import pytest

from convnext_deploy.metrics.intervals import paired_difference_interval
from convnext_deploy.metrics.worst_class import WorstClass, find_worst_class, simultaneous_z


def of_class(label: int, total: int, lost: int, gained: int, wrong: int = 0) -> list[tuple[int, int, int]]:
    """Return labels with first guesses before and now."""
    kept = [(label, label, label)] * (total - lost - gained - wrong)
    return kept + [(label, label, 9)] * lost + [(label, 9, label)] * gained + [(label, 9, 9)] * wrong


def find(*classes: list[tuple[int, int, int]]) -> WorstClass:
    labels, before, now = np.array([image for images in classes for image in images]).T
    return find_worst_class(labels, before, now)


def test_worst_class_is_the_one_with_the_largest_drop_and_not_the_most_lost_images() -> None:
    found = find(of_class(0, 200, 6, 0), of_class(2, 50, 5, 1), of_class(3, 20, 0, 2))
    assert (found.label, found.total, found.changed, found.classes, found.fewest) == (2, 50, 6, 3, 20)
    assert found.drop_pp == pytest.approx(100 * 4 / 50)


def test_interval_is_from_the_largest_lower_to_the_largest_upper_end_at_a_corrected_level() -> None:
    found = find(of_class(0, 500, 40, 10), of_class(1, 20, 1, 0, wrong=4))
    z = simultaneous_z(2)
    assert z == pytest.approx(2.2414, abs=1e-4)  # 97.5 % of each, so that both hold with 95 %
    large, small = paired_difference_interval(450, 40, 10, 0, z), paired_difference_interval(15, 1, 0, 4, z)
    assert found.label == 0
    assert large[0] > small[0]
    assert small[1] > large[1]
    assert found.interval_pp == pytest.approx((100 * large[0], 100 * small[1]))


def test_one_class_has_the_usual_interval() -> None:
    assert simultaneous_z(1) == pytest.approx(1.959964)
    assert find(of_class(0, 100, 3, 1)).interval_pp == pytest.approx(
        tuple(100 * end for end in paired_difference_interval(96, 3, 1, 0))
    )


def test_of_equal_drops_the_lowest_class_counts_and_gains_are_negative() -> None:
    assert find(of_class(1, 10, 1, 0), of_class(2, 10, 1, 0)).label == 1
    gained = find(of_class(1, 10, 0, 2), of_class(2, 10, 0, 1))
    assert gained.label == 2
    assert gained.drop_pp == pytest.approx(-10.0)


@pytest.mark.parametrize(("classes", "images", "worst"), [(10, 54, 0.01), (10, 54, 0.25), (50, 20, 0.05)])
def test_interval_holds_the_true_drop_of_the_worst_class(classes: int, images: int, worst: float) -> None:
    """Images are lost with 1 % in all classes and with more in one; the largest measured drop alone is mostly too large."""
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(classes), images)
    chance = np.where(labels == 0, worst, 0.01)
    truth, held, above = 100 * max(worst, 0.01), 0, 0
    for _ in range(100):
        found = find_worst_class(labels, labels, np.where(rng.random(len(labels)) < chance, classes, labels))
        held += found.interval_pp[0] <= truth <= found.interval_pp[1]
        above += found.drop_pp > truth
    assert held >= 95
    if worst == 0.01:
        assert above > 60
