"""Judge a score by a gate: passed, failed, or passed without proof."""

from dataclasses import dataclass, replace

import numpy as np

from convnext_deploy.config.recipe import Gate
from convnext_deploy.errors import DataError
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.paired import Drop, compare_predictions, images_needed

_ROUNDING_PP = 1e-9  # what the arithmetic of percentages may add


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a measurement.

    `passed` is None where no gate was set or the artifact could not be run. `reasons` has a line for each failed gate.

    `proven` is whether the whole interval of the drop lies within the gate; None where no drop is judged, and for a gate of 0,
    which asks for no loss on these very images. `images_needed` is set where the drop may lie on either side of the gate and the
    images are too few to tell: about how many would do. `notes` say both in words.
    """

    passed: bool | None = None
    reasons: tuple[str, ...] = ()
    proven: bool | None = None
    images_needed: int | None = None
    notes: tuple[str, ...] = ()


def measure_drop(score: Score, baseline: Score) -> Drop:
    """Compare two scores image by image.

    Raises: DataError: if they were measured on different images.
    """
    if score.labels != baseline.labels:
        raise DataError(
            f"the two scores are not of the same images ({score.total} and {baseline.total}); validate both on the same data."
        )
    return compare_predictions(*map(np.array, (score.labels, baseline.predictions, score.predictions)))


def judge(score: Score, drop: Drop | None, gate: Gate) -> Verdict:
    """Apply a gate to what was measured."""
    reasons = []
    if gate.min_top1 is not None and score.top1 < gate.min_top1:
        reasons.append(f"top-1 {100 * score.top1:.2f} % is below the {100 * gate.min_top1:.2f} % asked for")
    if gate.max_top1_drop_pp is None or drop is None:
        return Verdict(None if gate.min_top1 is None else not reasons, tuple(reasons))
    reasons += _drop_reasons(drop, gate.max_top1_drop_pp, gate.on)
    passed = not reasons
    if gate.max_top1_drop_pp == 0:
        return Verdict(passed, tuple(reasons))
    return _weigh(Verdict(passed, tuple(reasons)), score.total, drop, gate.max_top1_drop_pp)


def withhold(verdict: Verdict, reason: str) -> Verdict:
    """Return a verdict that proves nothing, for a reason in words, such as that a network is no better than guessing."""
    if not verdict.passed:
        return verdict
    note = f"passed, which proves nothing: {reason}"
    return replace(verdict, proven=False, notes=(*verdict.notes, note))


def _drop_reasons(drop: Drop, allowed_pp: float, on: str) -> list[str]:
    high = drop.interval_pp[1]
    if (high if on == "upper" else drop.top1_drop_pp) <= allowed_pp + _ROUNDING_PP:
        return []
    if on == "point":
        return [f"top-1 drops by {drop.top1_drop_pp:.2f} pp, more than the {allowed_pp:.2f} pp allowed"]
    places = 2 if f"{high:.2f}" != f"{allowed_pp:.2f}" else 5
    return [
        f"the 95 % interval of the top-1 drop ends at {high:+.{places}f} pp, above the {allowed_pp:.2f} pp allowed "
        f"(measured: {drop.top1_drop_pp:+.2f} pp)"
    ]


def _weigh(verdict: Verdict, total: int, drop: Drop, allowed_pp: float) -> Verdict:
    """Add to a verdict how sure it is, and how many images would make it so."""
    low, high = drop.interval_pp
    if high <= allowed_pp + _ROUNDING_PP:
        return replace(verdict, proven=True)
    verdict = replace(verdict, proven=False)
    interval = f"95 % interval {low:+.2f} to {high:+.2f} pp"
    needed = images_needed(allowed_pp / 100, (drop.lost + drop.gained) / total)
    if low <= allowed_pp and total < needed:
        note = (
            f"{total:,} images cannot tell whether top-1 drops by more than {allowed_pp:.2f} pp ({interval}); "
            f"about {_round_up(needed):,} would do if nothing was lost"
        )
        return replace(verdict, images_needed=needed, notes=(note,))
    if not verdict.passed:
        return verdict
    note = f"passed by what was measured; the drop may be more than {allowed_pp:.2f} pp ({interval})"
    return replace(verdict, notes=(note,))


def _round_up(count: int) -> int:
    """Round up to two digits, as many as a plan is good for."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // unit) * unit
