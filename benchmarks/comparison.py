"""What the benchmarks that compare with peers share: a ratio of times with its uncertainty."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def median_ratio(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the median of `theirs / ours` over rounds, and its 95 % interval from 2,000 bootstrap samples.

    Both are times of the same rounds, so that a machine that slows down for a while slows both.
    """
    ratios = theirs / ours
    samples = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)
