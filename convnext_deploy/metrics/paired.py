"""Two classifiers on the same images: the drop of top-1 with its interval, McNemar's test, how many images tell a drop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.metrics.change import Change
from convnext_deploy.metrics.intervals import Z95, paired_difference_interval

SIGNIFICANCE = 0.05
# 0.05 cannot be reached with fewer images that only one of two classifies correctly: 2 / 2^5 = 0.0625, 2 / 2^6 = 0.031
LEAST_DISCORDANT = 6
_Z80 = 0.8416212335729143  # 80 % quantile


@dataclass(frozen=True)
class Drop:
    """What one classifier lost against another one on the same images. Positive: it got worse. Counts of images.

    `top1_drop_pp` in percentage points of top-1, `interval_pp` its 95 % interval (`paired_difference_interval`). Right are `both`
    of them, the other one only (`lost`), this one only (`gained`), or `neither`; `agreement` is the fraction of equal first
    guesses, right or wrong, and `p_value` that of the exact McNemar test.
    """

    both: int
    lost: int
    gained: int
    neither: int
    agreement: float
    top1_drop_pp: float
    interval_pp: tuple[float, float]
    p_value: float

    @property
    def change(self) -> Change:
        """The same as of any score."""
        return Change(self.top1_drop_pp, self.interval_pp, self.agreement)


def compare_predictions(labels: NDArray[np.int64], before: NDArray[np.int64], now: NDArray[np.int64]) -> Drop:
    """Compare the first guesses `(N,)` of two classifiers, `before` and `now`, for the same N >= 1 images, with their labels."""
    right_before, right = before == labels, now == labels
    both, neither = int((right_before & right).sum()), int((~right_before & ~right).sum())
    lost, gained = int((right_before & ~right).sum()), int((~right_before & right).sum())
    low, high = paired_difference_interval(both, lost, gained, neither)
    return Drop(
        both,
        lost,
        gained,
        neither,
        agreement=float(np.mean(before == now)),
        top1_drop_pp=100.0 * (lost - gained) / len(labels),
        interval_pp=(100.0 * low, 100.0 * high),
        p_value=mcnemar_p_value(lost, gained),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test: how often chance alone divides the images so unevenly, or more so.

    If both are equally good, each image that only one of them classifies correctly is either one's with probability 1/2, so that
    the smaller count is binomial. The p-value is twice the probability of that count or less, computed in whole numbers and
    rounded once.

    Args:
        only_first: images that only the first classifies correctly, >= 0.
        only_second: images that only the second classifies correctly, >= 0.

    Returns: in [0, 1]; 1 when the counts are equal.
    Source: McNemar 1947, Psychometrika 12:153; the exact form as in Fagerland, Lydersen, Laake 2013, BMC Medical Research
        Methodology 13:91. It errs on the safe side: a true null hypothesis is rejected less often than the level says.
    """
    discordant = only_first + only_second
    ways = term = 1
    for count in range(min(only_first, only_second)):
        term = term * (discordant - count) // (count + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << discordant))


def holm_p_values(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values of several tests, so that comparing each with a level keeps the chance of any false alarm below it.

    Needs no independence of the tests.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def images_needed(drop: float, discordance: float, z: float = Z95) -> int:
    """Return about how many images tell a drop of this size from none, four times in five.

    With so many, McNemar's test at the 5 % level sees a true drop of this size with probability 0.8, and where nothing was
    lost the upper end of the 95 % interval lies below it with the same probability, both in the normal approximation. In
    simulations of the exact test and of the interval above it is 0.75 to 0.80, and 0.64 for the interval where the discordance
    is no more than the drop (`tests/evaluation/test_images_needed.py`).

    Args:
        drop: of top-1, a fraction in (0, 1].
        discordance: fraction of the images that only one of the two classifies correctly, in [0, 1]. A drop needs at least as
            many as itself, so a smaller value, such as none seen in a few images, counts as `drop`.
        z: quantile of the normal distribution; that of 95 % unless given.

    Source: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43:207.
    """
    discordance = max(discordance, drop)
    root = z * math.sqrt(discordance) + _Z80 * math.sqrt(discordance - drop**2)
    return math.ceil((root / drop) ** 2)
