"""How many images tell a drop: a published value, and simulations of the test and of the interval with so many."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.metrics.intervals import paired_difference_interval
from convnext_deploy.metrics.paired import images_needed, mcnemar_p_value

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
DRAWS = 2000
# drop, discordance, top-1 of the baseline
CASES = [
    (0.005, 0.005, 0.97),
    (0.005, 0.01, 0.97),
    (0.01, 0.03, 0.9),
    (0.005, 0.05, 0.8),
    (0.02, 0.1, 0.7),
    (0.002, 0.004, 0.95),
    (0.05, 0.2, 0.6),
]
p_value = functools.cache(mcnemar_p_value)
upper_end = functools.cache(lambda *table: paired_difference_interval(*table)[1])


def draw(total: int, drop: float, discordance: float, top1: float) -> list[tuple[int, int, int, int]]:
    """Draw tables of images that both, only the baseline, only the artifact, and none classify correctly."""
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    cells = [top1 - lost, lost, gained, 1 - top1 - gained]
    return [tuple(table) for table in np.random.default_rng(0).multinomial(total, cells, DRAWS).tolist()]


def test_images_needed_equals_the_published_example() -> None:
    """Connor's formula for 0.45 lost and 0.05 gained, as computed by powerandsamplesize.com (5 % two-sided, power 0.8)."""
    assert images_needed(0.40, 0.50) == 23


@pytest.mark.parametrize(("drop", "discordance", "expected"), [(0.005, 0.01, 3138), (0.01, 0.03, 2353), (1.0, 1.0, 4)])
def test_images_needed_by_hand(drop: float, discordance: float, expected: int) -> None:
    """(1.95996·√ψ + 0.84162·√(ψ − δ²))² / δ², rounded up."""
    assert images_needed(drop, discordance) == expected


def test_images_needed_counts_no_discordance_as_the_drop_itself() -> None:
    assert images_needed(0.005, 0.0) == images_needed(0.005, 0.004) == images_needed(0.005, 0.005) == 1568
    assert images_needed(0.005, 0.006) > 1568


@PROPERTY
@given(drop=st.floats(0.0005, 0.5), discordance=st.floats(0, 1), factor=st.floats(1.01, 2))
def test_images_needed_grows_with_discordance_and_shrinks_with_the_drop(
    drop: float, discordance: float, factor: float
) -> None:
    needed = images_needed(drop, discordance)
    assert needed >= 4
    assert images_needed(drop, min(1.0, discordance * factor)) >= needed
    assert images_needed(drop * factor, max(discordance, drop * factor)) <= images_needed(
        drop, max(discordance, drop * factor)
    )


@pytest.mark.parametrize(("drop", "discordance", "top1"), CASES)
def test_images_needed_suffice_to_see_the_drop_four_times_in_five(drop: float, discordance: float, top1: float) -> None:
    tables = draw(images_needed(drop, discordance), drop, discordance, top1)
    seen = sum(lost > gained and p_value(lost, gained) <= 0.05 for _, lost, gained, _ in tables)
    assert 0.74 < seen / DRAWS < 0.82


@pytest.mark.parametrize(("drop", "discordance", "top1"), CASES)
def test_half_the_images_needed_do_not_suffice(drop: float, discordance: float, top1: float) -> None:
    tables = draw(images_needed(drop, discordance) // 2, drop, discordance, top1)
    seen = sum(lost > gained and p_value(lost, gained) <= 0.05 for _, lost, gained, _ in tables)
    assert seen / DRAWS < 0.55


@pytest.mark.parametrize(("drop", "discordance", "top1"), CASES)
def test_images_needed_suffice_for_an_interval_below_the_drop_when_nothing_was_lost(
    drop: float, discordance: float, top1: float
) -> None:
    tables = draw(images_needed(drop, discordance), 0.0, discordance, top1)
    below = sum(upper_end(*table) <= drop for table in tables)
    assert (0.60 if discordance == drop else 0.74) < below / DRAWS < 0.82


@pytest.mark.parametrize("share", [0.25, 1.0, 4.0])
@pytest.mark.parametrize(("drop", "discordance", "top1"), CASES)
def test_upper_end_is_below_a_true_drop_as_rarely_as_an_interval_of_95_percent_says(
    drop: float, discordance: float, top1: float, share: float
) -> None:
    """A gate on the upper end lets an artifact pass that loses just what is allowed in 2.5 % of all cases."""
    total = math.ceil(share * images_needed(drop, discordance))
    wrong = sum(upper_end(*table) <= drop for table in draw(total, drop, discordance, top1))
    assert wrong / DRAWS < 0.04
