"""Upper confidence bounds of a proportion, and of the mean of costs between 0 and 1, from few images."""

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_HALVINGS = 60  # of an interval of length 1, down to the spacing of float64 at 1
_NEGLIGIBLE = 1e-17


def binomial_tail(counts: ArrayLike, total: int, share: ArrayLike) -> NDArray[np.float64]:
    """Return the probability of at most so many events among `total` independent ones.

    The terms of the sum are computed from the largest downwards, each from the one before it, until they no longer count; so
    `counts` may not lie above what is expected, `share * total`, where the largest term is another one.

    Args:
        counts: of events, `(K,)`, each in [0, share * total].
        total: number of trials, >= 1.
        share: probability of an event, `(K,)`, in (0, 1).

    Returns: `(K,)`, in [0, 1].
    """
    left, p = np.asarray(counts, np.float64), np.asarray(share, np.float64)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    index = left.astype(np.int64)
    ways = log_factorial[total] - log_factorial[index] - log_factorial[total - index]
    term = np.exp(ways + left * np.log(p) + (total - left) * np.log1p(-p))
    tail: NDArray[np.float64] = term.copy()
    odds = (1.0 - p) / p
    while (left > 0).any() and (term > _NEGLIGIBLE * tail).any():
        term = term * left / (total - left + 1.0) * odds  # 0 from where `left` is 0
        left = np.maximum(left - 1.0, 0.0)
        tail += term
    return np.minimum(tail, 1.0, out=tail)


def clopper_pearson_upper(counts: ArrayLike, total: int, level: float) -> NDArray[np.float64]:
    """Return the upper bounds that a true proportion exceeds in at most `level` of the cases, whatever it is.

    It is the proportion with which so few events, or fewer, have the probability `level`, found by halving the interval.

    Args:
        counts: of events among `total` independent trials, `(K,)`, in [0, total].
        total: number of trials, >= 1.
        level: error probability, in (0, 1); 0.05 gives one-sided 95 % bounds.

    Returns: `(K,)`, in (0, 1].
    Source: Clopper, Pearson 1934, Biometrika 26:404. As a quantile of the beta distribution it is B(1 - level; k + 1, n - k).
    """
    found = np.atleast_1d(np.asarray(counts, np.int64))
    low, high = found / total, np.ones(found.shape)
    inner = found < total  # of all events nothing can be excluded
    for _ in range(_HALVINGS):
        middle = (low[inner] + high[inner]) / 2
        beyond = binomial_tail(found[inner], total, middle) <= level
        high[inner] = np.where(beyond, middle, high[inner])
        low[inner] = np.where(beyond, low[inner], middle)
    return high


def stringer_bound(costs: NDArray[np.float64], level: float) -> float:
    """Return an upper bound of the expected cost of an image, exceeded by it in at most `level` of the cases.

    For costs that are all 0 or 1 it is that of Clopper and Pearson; a smaller cost counts with its part of what an event adds to
    their bound, the largest first. Nothing is assumed of the costs but that they are between 0 and 1: what was seen on no image
    may cost 1 on others.

    Args:
        costs: of images drawn at random, `(N,)`, in [0, 1], N >= 1.
        level: error probability, in (0, 1).

    Returns: in (0, 1].
    Source: Stringer 1963; Bickel 1992, "Inference and auditing: the Stringer bound", International Statistical Review 60:197,
        where it is shown to hold for many images. That it holds for few is what simulations say, see `benchmarks/evidence.py`.
    """
    positive = -np.sort(-costs[costs > 0])
    size = 1 << len(positive).bit_length()  # some more than needed, so that other costs find them computed
    bounds = _first_bounds(min(size, len(costs) + 1), len(costs), level)[: len(positive) + 1]
    return float(min(1.0, bounds[0] + (np.diff(bounds) * positive).sum()))


@functools.lru_cache(maxsize=64)
def _first_bounds(count: int, total: int, level: float) -> NDArray[np.float64]:
    found = clopper_pearson_upper(np.arange(count), total, level)
    found.setflags(write=False)
    return found


def images_without_event(share: float, level: float) -> int | None:
    """Return how many images must all be without an event to bound its share by `share` at `level`; None: no number does.

    It is the smallest total for which `clopper_pearson_upper(0, total, level) <= share`, that is `(1 - share)^total <= level`.

    Args:
        share: in [0, 1].
        level: error probability, in (0, 1).
    """
    if share <= 0:
        return None
    return 1 if share >= 1 else max(1, math.ceil(math.log(level) / math.log1p(-share)))
