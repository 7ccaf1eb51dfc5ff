"""From scores to a verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convnext_deploy.errors import DataError
from convnext_deploy.recipe import Gate
from convnext_deploy.validation.score import Score
from convnext_deploy.validation.statistics import paired_difference_interval


@dataclass(frozen=True)
class Drop:
    """What an artifact lost against another one. Positive: it got worse. In percentage points of top-1.

    `interval_pp` is the 95 % interval from the paired predictions; `agreement` the fraction of equal first guesses.
    """

    top1_drop_pp: float
    interval_pp: tuple[float, float]
    agreement: float


@dataclass(frozen=True)
class Verdict:
    """`passed` is None where no gate was set or the artifact could not be run. `reasons` holds one line per failed gate."""

    passed: bool | None
    reasons: tuple[str, ...] = ()


def measure_drop(score: Score, baseline: Score) -> Drop:
    """Compare two scores image by image.

    Raises: DataError: if they were measured on different images.
    """
    if score.labels != baseline.labels:
        raise DataError(
            f"the two scores are not of the same images ({score.total} and {baseline.total}); validate both on the same data."
        )
    labels = np.array(score.labels)
    right = np.array(score.predictions) == labels
    right_before = np.array(baseline.predictions) == labels
    low, high = paired_difference_interval(
        int((right_before & right).sum()),
        int((right_before & ~right).sum()),
        int((~right_before & right).sum()),
        int((~right_before & ~right).sum()),
    )
    drop = 100.0 * (baseline.correct - score.correct) / score.total
    return Drop(drop, (100.0 * low, 100.0 * high), score.agreement(baseline))


def judge(score: Score, drop: Drop | None, gate: Gate) -> Verdict:
    """Apply a gate to what was measured."""
    reasons = []
    if gate.min_top1 is not None and score.top1 < gate.min_top1:
        reasons.append(f"top-1 {100 * score.top1:.2f} % is below the {100 * gate.min_top1:.2f} % asked for")
    if gate.max_top1_drop_pp is not None and drop is not None and drop.top1_drop_pp > gate.max_top1_drop_pp + 1e-9:
        reasons.append(
            f"top-1 drops by {drop.top1_drop_pp:.2f} pp, more than the {gate.max_top1_drop_pp:.2f} pp allowed"
        )
    judged = gate.min_top1 is not None or (gate.max_top1_drop_pp is not None and drop is not None)
    return Verdict(not reasons if judged else None, tuple(reasons))
