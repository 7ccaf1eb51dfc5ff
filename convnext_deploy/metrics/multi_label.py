"""Data with any number of labels an image: average precision and AUC of each class, their means, and what they lost.

Whether an image has a label may be unknown: it then counts for none of that label's figures. A class without an image that has it,
or without one that has it not, has no AUC, and the former no average precision; it is left out of the means.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.metrics.worst_class import simultaneous_z

UNKNOWN = -1  # beside 0, the image has not the label, and 1, it has it
Labels = NDArray[np.int8]
Scores = NDArray[np.float32] | NDArray[np.float64]
Vector = NDArray[np.float64]

_DRAWS, _LEAST_DRAWS = 1000, 200
_WORK = 400_000_000  # draws times labels of images; of more there are fewer draws
_AT_ONCE = 4_000_000  # weights
_SEED = 0x3AB
_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class ClassFigures:
    """Of one class: `positives` of the `known` images have its label. Fractions, each with its 95 % interval; None: undefined.

    `drop_pp`: of the average precision against a baseline, in percentage points, None where none was given; its interval holds for
    all classes at once.
    """

    label: int
    positives: int
    known: int
    ap: float | None
    ap_interval: tuple[float, float] | None
    auc: float | None
    auc_interval: tuple[float, float] | None
    drop_pp: float | None = None
    drop_interval_pp: tuple[float, float] | None = None


@dataclass(frozen=True)
class MultiLabel:
    """Means over the classes, mAP and AUC (None: of no class), fractions with their 95 % intervals, and what was lost.

    `drop_pp`: of mAP against a baseline on the same images, in percentage points; `agreement`: share of equal answers to the single
    questions, yes or no; None where there is no baseline. `counted`: see `effective_number`.
    """

    map: float
    map_interval: tuple[float, float]
    auc: float | None
    auc_interval: tuple[float, float] | None
    classes: tuple[ClassFigures, ...]
    drop_pp: float | None = None
    drop_interval_pp: tuple[float, float] | None = None
    agreement: float | None = None
    counted: float = 0.0


def average_precision(labels: NDArray[np.int8], scores: Scores) -> float | None:
    """Return the average precision of one class, `sum over n of (R_n - R_(n-1)) P_n`; None if no image has its label.

    `P_n` and `R_n` are precision and recall of the images with the n largest different scores: equal scores count together, and
    nothing is interpolated, as scikit-learn's `average_precision_score` does.

    Args:
        labels: `(N,)`, 1, 0 or `UNKNOWN`.
        scores: `(N,)`, the more probable the larger.
    """
    found = _Ranking(labels, scores).figures(np.ones((1, len(labels)), np.float32))[0]
    return None if np.isnan(found[0]) else float(found[0])


def mean_average_precision(labels: Labels, scores: Scores) -> float | None:
    """Return the mean of the average precisions of the classes that have one, of `(N, K)` labels and scores; None: none has."""
    found = [average_precision(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]
    known = [ap for ap in found if ap is not None]
    return sum(known) / len(known) if known else None


def measure_multi_label(labels: Labels, scores: Scores, before: Scores | None = None) -> MultiLabel:
    """Measure scores, and compare them with others for the same images.

    Intervals are of the bootstrap over images, the same draws for both, so that differences are paired: percentiles, or two
    standard errors where those are more; of the drops of single classes `± z` standard errors, with `z` for all classes at once,
    after Bonferroni. A bootstrap of figures that no image contradicts is a point, however few the images are. So no interval is
    narrower than what a change in no image leaves open: Wilson's bound of a proportion of which nothing was seen, `z² / (n + z²)`,
    where n is the number of images with the label, and for means over classes the number that gives the mean of as many proportions
    the same variance (see `effective_number`).

    Args:
        labels: `(N, K)`, 1, 0 or `UNKNOWN`; at least one of them is 1.
        scores: `(N, K)`, finite, the more probable the larger; the image is said to have the label above 0.
        before: those of the baseline.

    Raises: ValueError: if no image has a label.
    """
    rankings = [_Ranking(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]
    others = [] if before is None else [_Ranking(labels[:, k], before[:, k]) for k in range(labels.shape[1])]
    once = np.ones((1, len(labels)), np.float32)
    own, old = _all_figures(rankings, once)[..., 0], _all_figures(others, once)[..., 0]  # (2, K)
    if np.isnan(own[0]).all():
        raise ValueError("no image has a label")
    draws: tuple[list[Vector], list[Vector]] = ([], [])
    for weights in _draw_weights(len(labels), labels.shape[1]):
        for place, each in enumerate((rankings, others)):
            draws[place].append(_all_figures(each, weights))
    drawn, drawn_old = (np.concatenate(parts, axis=-1) for parts in draws)  # (2, K, draws)
    positives = np.array([ranking.positives for ranking in rankings])
    negatives = np.array([ranking.known - ranking.positives for ranking in rankings])
    several = effective_number(positives, labels)
    fewer = effective_number(np.minimum(positives, negatives), labels)
    auc = _mean(own[1])
    found = MultiLabel(
        map=float(_mean(own[0])),
        map_interval=_interval(float(_mean(own[0])), _mean(drawn[0]), several),
        auc=None if np.isnan(auc) else float(auc),
        auc_interval=None if np.isnan(auc) else _interval(float(auc), _mean(drawn[1]), fewer),
        classes=tuple(
            ClassFigures(
                k,
                ranking.positives,
                ranking.known,
                *_with_interval(own[0, k], drawn[0, k], ranking.positives),
                *_with_interval(own[1, k], drawn[1, k], int(min(positives[k], negatives[k]))),
            )
            for k, ranking in enumerate(rankings)
        ),
        counted=several,
    )
    if before is None:
        return found
    return _compare(found, (own[0], old[0]), (drawn[0], drawn_old[0]), several, _agreement(labels, scores, before))


def effective_number(positives: NDArray[np.int64], labels: Labels) -> float:
    """Return the number of images that say as much of a proportion as the mean over classes does, one with each of `positives`.

    That mean has the variance `p (1 - p) / K² * sum(1 / n_k)`, so it is `K² / sum(1 / n_k)`; at most the images with any label, as
    those with several do not count more than once. Classes with none have no part in the mean.
    """
    counted = positives[positives > 0]
    if not len(counted):
        return 0.0
    return float(min(len(counted) ** 2 / (1 / counted).sum(), max(1, int((labels == 1).any(axis=1).sum()))))


def unseen(number: float, z: float = _Z95) -> float:
    """Return how large a proportion may be of which nothing was seen on that many images (Wilson 1927)."""
    return z**2 / (number + z**2)


def images_for_unseen(share: float, z: float = _Z95) -> float:
    """Return on how many images nothing must be seen for `unseen` to be as small as a share above 0."""
    return z**2 * (1 - share) / share


class _Ranking:
    """The images of which a class's label is known, in the order of their scores, and the places that its figures need."""

    def __init__(self, labels: NDArray[np.int8], scores: Scores) -> None:
        known = np.flatnonzero(labels != UNKNOWN)
        self.order = known[np.argsort(-scores[known], kind="stable")]
        is_positive, ordered = labels[self.order] == 1, scores[self.order]
        self.known, self.positives = len(known), int(is_positive.sum())
        if not self.positives:
            return
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of equal scores
        ends = np.append(starts[1:], self.known)
        where = np.flatnonzero(is_positive)
        group = np.searchsorted(starts, where, side="right") - 1
        groups, first = np.unique(group, return_index=True)  # those with an image that has the label
        self.where, self.first = where, first
        self.bounds = np.unique(np.concatenate([[0], starts[groups], ends[groups]]))
        self.bounds = self.bounds[self.bounds < self.known]
        self.start, self.end = (np.searchsorted(self.bounds, places[groups]) for places in (starts, ends))

    def figures(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return average precision and AUC `(2, draws)` where each image counts as often as `weights (draws, N)` say; NaN: none."""
        if not self.positives:
            return np.full((2, len(weights)), np.nan)
        ordered = weights[:, self.order]
        parts = np.add.reduceat(ordered, self.bounds, axis=1, dtype=np.float64)
        total = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(parts, axis=1)], axis=1)
        above, upto = total[:, self.start], total[:, self.end]  # images before each group, and with it
        hits = np.add.reduceat(ordered[:, self.where], self.first, axis=1, dtype=np.float64)
        all_hits = np.cumsum(hits, axis=1)
        positive, negative = all_hits[:, -1], total[:, -1] - all_hits[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(upto > 0, all_hits / upto, 0.0)
            ap = (hits * precision).sum(axis=1) / positive
            worse = ((above - (all_hits - hits)) + (upto - all_hits)) / 2  # negatives above, those of equal score half
            auc = 1.0 - (hits * worse).sum(axis=1) / (positive * negative)
        return np.stack([ap, np.where(negative > 0, auc, np.nan)])


def _all_figures(rankings: list[_Ranking], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `(2, K, draws)`."""
    if not rankings:
        return np.zeros((2, 0, len(weights)))
    return np.stack([ranking.figures(weights) for ranking in rankings], axis=1)


def _draw_weights(count: int, classes: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each of `count` images is drawn with replacement, `(draws, count)`; always the same."""
    rng = np.random.default_rng(_SEED)
    left = int(np.clip(_WORK // max(1, count * classes), _LEAST_DRAWS, _DRAWS))
    while left:
        draws = min(left, max(1, _AT_ONCE // count))
        places = rng.integers(0, count, (draws, count)) + count * np.arange(draws)[:, None]
        yield np.bincount(places.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float32)
        left -= draws


def _mean(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the classes (the first axis) of those that are defined; NaN where none is."""
    defined = ~np.isnan(figures)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, figures, 0.0).sum(axis=0) / defined.sum(axis=0))


def _with_interval(
    value: float, drawn: NDArray[np.float64], number: int
) -> tuple[float, tuple[float, float]] | tuple[None, None]:
    return (None, None) if np.isnan(value) else (float(value), _interval(float(value), drawn, number))


def _interval(value: float, drawn: NDArray[np.float64], number: float, least: float = 0.0) -> tuple[float, float]:
    """Return the percentiles of what was drawn, at least as far as two standard errors and as `unseen` allows; within [least, 1].

    In simulations percentiles alone held the true mAP of 150 images, 15 of the rarest label, in 91 to 93 %.
    """
    room = max(unseen(number), _Z95 * float(np.nanstd(drawn)))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return max(least, min(float(low), value - room)), min(1.0, max(float(high), value + room))


def _compare(
    found: MultiLabel,
    figures: tuple[Vector, Vector],
    drawn: tuple[NDArray[np.float64], NDArray[np.float64]],
    several: float,
    agreement: float,
) -> MultiLabel:
    """Return the figures with what was lost: average precisions `(K,)` now and before, and as drawn, `(K, draws)`."""
    lost, lost_drawn = figures[1] - figures[0], drawn[1] - drawn[0]
    drop = float(_mean(lost))
    z = simultaneous_z(max(1, int((~np.isnan(lost)).sum())))
    classes = []
    for each in found.classes:
        own = lost[each.label]
        if not np.isnan(own):
            half = z * float(np.nanstd(lost_drawn[each.label]))
            room = unseen(each.positives, z)
            ends = max(-1.0, float(own) - max(half, room)), min(1.0, float(own) + max(half, room))
            each = replace(each, drop_pp=100 * float(own), drop_interval_pp=(100 * ends[0], 100 * ends[1]))
        classes.append(each)
    low, high = _interval(drop, _mean(lost_drawn), several, least=-1.0)
    return replace(
        found, classes=tuple(classes), drop_pp=100 * drop, drop_interval_pp=(100 * low, 100 * high), agreement=agreement
    )


def _agreement(labels: Labels, scores: Scores, before: Scores) -> float:
    known = labels != UNKNOWN
    return float(((scores > 0) == (before > 0))[known].mean())
