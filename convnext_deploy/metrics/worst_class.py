"""The class that loses most: its drop of top-1, with an interval that holds for all classes at once."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.metrics.intervals import paired_difference_interval
from convnext_deploy.metrics.paired import SIGNIFICANCE


@dataclass(frozen=True)
class WorstClass:
    """The class with the largest drop of top-1 among `classes` that have images, `fewest` or more of them.

    `label` is its index; it has `total` images, of which only one classifier is right on `changed`. `drop_pp` in percentage points,
    positive: worse. `interval_pp` holds the largest true drop of any class with 95 %: the largest of several measured drops is too
    large by chance, and another class may lose more than it shows.
    """

    label: int
    total: int
    changed: int
    classes: int
    fewest: int
    drop_pp: float
    interval_pp: tuple[float, float]


def find_worst_class(labels: NDArray[np.int64], before: NDArray[np.int64], now: NDArray[np.int64]) -> WorstClass:
    """Compare the first guesses `(N,)` of two classifiers class by class, for the same N >= 1 images, with their labels.

    Each class gets the interval of a paired difference (Newcombe 1998, method 10) at the level 1 - 0.05 / classes, so that all
    hold together with 95 % (Bonferroni; Dunn 1961, Journal of the American Statistical Association 56:52). Then the largest true
    drop lies between the largest lower and the largest upper end. Of equal drops the lowest class counts.
    """
    size = int(labels.max()) + 1
    right_before, right = before == labels, now == labels
    totals, both, lost, gained = (
        np.bincount(labels[chosen], minlength=size).tolist()
        for chosen in (..., right_before & right, right_before & ~right, ~right_before & right)
    )
    present = [label for label in range(size) if totals[label]]
    z = simultaneous_z(len(present))
    intervals = [
        paired_difference_interval(
            both[label], lost[label], gained[label], totals[label] - both[label] - lost[label] - gained[label], z
        )
        for label in present
    ]
    worst = max(present, key=lambda label: ((lost[label] - gained[label]) / totals[label], -label))
    return WorstClass(
        worst,
        totals[worst],
        lost[worst] + gained[worst],
        len(present),
        min(totals[label] for label in present),
        100.0 * (lost[worst] - gained[worst]) / totals[worst],
        (100.0 * max(low for low, _ in intervals), 100.0 * max(high for _, high in intervals)),
    )


def simultaneous_z(count: int) -> float:
    """Return the quantile of the normal distribution at which `count` two-sided intervals hold together with 95 %."""
    return NormalDist().inv_cdf(1 - SIGNIFICANCE / (2 * count))
