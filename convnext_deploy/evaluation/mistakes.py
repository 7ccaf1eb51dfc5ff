"""Where a classifier errs: class by class, which class it takes for which, and the errors of which it is most sure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from convnext_deploy.evaluation.score import Score

WHOLE_UP_TO = 30
"""Number of classes up to which every pair of classes is kept, so that the matrix can be drawn."""
_MOST_CONFUSED, _MOST_CHANGED = 40, 40  # pairs of more classes than that


@dataclass(frozen=True)
class ClassScore:
    """Validation images of a class, and how many of them are classified correctly. `label` is the index of the class."""

    label: int
    total: int
    correct: int


@dataclass(frozen=True)
class Confusion:
    """How many images of class `label` were taken for class `prediction`, another one; `before`: by the baseline, None without."""

    label: int
    prediction: int
    count: int
    before: int | None = None


@dataclass(frozen=True)
class SureError:
    """An image that was classified wrongly, and with which probability, 0 to 1. `index` and `image` as in `flips.Flip`."""

    index: int
    image: str | None
    label: int
    prediction: int
    confidence: float


def score_classes(score: Score) -> tuple[ClassScore, ...]:
    """Return the score of each class that has validation images, in the order of the classes."""
    labels = np.array(score.labels)
    right = labels[np.array(score.predictions) == labels]
    size = int(labels.max()) + 1
    counts = zip(np.bincount(labels, minlength=size).tolist(), np.bincount(right, minlength=size).tolist(), strict=True)
    return tuple(ClassScore(label, total, correct) for label, (total, correct) in enumerate(counts) if total)


def find_confusions(score: Score, baseline: Score | None = None) -> tuple[Confusion, ...]:
    """Return which classes were taken for which others, by an artifact or its baseline; of equals the lower classes come first.

    Of up to `WHOLE_UP_TO` classes that is every pair, the most frequent first; of more, the 40 most frequent pairs and the 40 whose
    number changed most.
    """
    now, before = _count_pairs(score), {} if baseline is None else _count_pairs(baseline)
    found = [
        Confusion(*pair, now.get(pair, 0), None if baseline is None else before.get(pair, 0))
        for pair in sorted({*now, *before})
    ]
    found.sort(key=lambda pair: (-pair.count, -(pair.before or 0)))
    if 1 + max(max(score.labels), max(score.predictions)) <= WHOLE_UP_TO:
        return tuple(found)
    changed = [pair for pair in found if pair.before not in (None, pair.count)]
    changed.sort(key=lambda pair: -abs(pair.count - (pair.before or 0)))
    kept = {(pair.label, pair.prediction) for pair in (*found[:_MOST_CONFUSED], *changed[:_MOST_CHANGED])}
    return tuple(pair for pair in found if (pair.label, pair.prediction) in kept)


def _count_pairs(score: Score) -> dict[tuple[int, int], int]:
    pairs = np.stack([score.labels, score.predictions], axis=1)
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    found, counts = np.unique(wrong, axis=0, return_counts=True)
    return {(label, guess): count for (label, guess), count in zip(found.tolist(), counts.tolist(), strict=True)}


def find_sure_errors(score: Score, name_image: Callable[[int], str | None], most: int) -> tuple[SureError, ...]:
    """Return the errors with the largest confidence, the surest first, at most `most`; none where confidences are not known.

    `name_image` returns the path of an image by its index, as the function from `flips.image_namer` does.
    """
    if not score.confidences:
        return ()
    return tuple(
        SureError(index, name_image(index), score.labels[index], score.predictions[index], score.confidences[index])
        for index in _surest(
            score.confidences, np.not_equal(score.labels, score.predictions).nonzero()[0].tolist(), most
        )
    )


def _surest(confidences: Sequence[float], wrong: Sequence[int], most: int) -> list[int]:
    return sorted(wrong, key=lambda index: -confidences[index])[:most]
