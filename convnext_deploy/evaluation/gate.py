"""Judge a score by a gate: passed, failed, or passed without proof."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convnext_deploy.config.recipe import Gate
from convnext_deploy.errors import DataError
from convnext_deploy.evaluation.limits import ROUNDING_PP, Limit, images_at_this_rate, limit_labels
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.calibration import Calibration
from convnext_deploy.metrics.multi_label import MultiLabel
from convnext_deploy.metrics.paired import Drop, compare_predictions, images_needed
from convnext_deploy.metrics.worst_class import WorstClass, simultaneous_z


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a measurement.

    `passed` is None where no gate was set or the artifact could not be run. `reasons` has a line for each failed gate.

    `proven` is whether the whole interval of every change that is judged lies within the gate; None where none is judged, and for
    a drop of 0, which asks for no loss on these very images. `images_needed` is set where the drop of top-1 may lie on either side
    of the gate and the images are too few to tell: about how many would do. `notes` say both in words, of other changes too.
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


def judge(
    score: Score,
    drop: Drop | None,
    gate: Gate,
    calibration: Calibration | None = None,
    worst: WorstClass | None = None,
    class_names: Sequence[str] | None = None,
    labels: MultiLabel | None = None,
) -> Verdict:
    """Apply a gate to what was measured.

    Args:
        score: of the artifact.
        drop: of its top-1; None, as `calibration` and `worst`: nothing is compared.
        gate: what it must reach.
        calibration: its calibration and how that changed.
        worst: the class that loses most.
        class_names: by class index; None: they go by number.
        labels: of multi-label data, in the place of all that is compared.
    """
    reasons = []
    if gate.min_top1 is not None and score.value < gate.min_top1:
        reasons.append(f"{score.metric} {100 * score.value:.2f} % is below the {100 * gate.min_top1:.2f} % asked for")
    on_calibration = list(_limit_calibration(gate.max_ece_increase_pp, calibration, score.total))
    limits = [
        *_limit_score(gate.max_top1_drop_pp, drop, score),
        *on_calibration,
        *_limit_class(gate.max_class_drop_pp, worst, score, class_names),
        *([] if labels is None else limit_labels(gate, labels, score.total, class_names)),
    ]
    for limit in limits:
        reasons += _exceeded(limit, gate.on)
    unknown = gate.max_ece_increase_pp is not None and drop is not None and not on_calibration
    if not limits and not unknown:
        return Verdict(None if gate.min_top1 is None else not reasons, tuple(reasons))
    found = Verdict(not reasons, tuple(reasons))
    if unknown:
        note = "the expected calibration error is not judged: not both artifacts tell how probable their answers are"
        found = replace(found, proven=False, notes=(note,))
    for limit in limits:
        if limit.allowed_pp > 0 or not limit.is_main:  # no loss at all speaks of these images only
            found = _weigh(found, limit)
    return found


def withhold(verdict: Verdict, reason: str) -> Verdict:
    """Return a verdict that proves nothing, for a reason in words, such as that a network is no better than guessing."""
    if not verdict.passed:
        return verdict
    note = f"passed, which proves nothing: {reason}"
    return replace(verdict, proven=False, notes=(*verdict.notes, note))


def _limit_score(allowed_pp: float | None, drop: Drop | None, score: Score) -> Iterator[Limit]:
    if allowed_pp is None or drop is None:
        return
    total = score.total
    needed = images_needed(allowed_pp / 100, (drop.lost + drop.gained) / total) if allowed_pp > 0 else None
    yield Limit(
        score.metric,
        "drops",
        drop.top1_drop_pp,
        drop.interval_pp,
        allowed_pp,
        total,
        needed,
        f"{total:,} images",
        "would do if nothing was lost",
        is_main=True,
    )


def _limit_calibration(allowed_pp: float | None, found: Calibration | None, total: int) -> Iterator[Limit]:
    if allowed_pp is None or found is None or found.increase_pp is None or found.increase_interval_pp is None:
        return
    increase = found.increase_pp
    needed = images_at_this_rate(total, increase, found.increase_interval_pp[1], allowed_pp)
    yield Limit(
        "the expected calibration error",
        "rises",
        increase,
        found.increase_interval_pp,
        allowed_pp,
        total,
        needed,
        f"{total:,} images",
        "would do if it stays as measured",
        f" (from {100 * found.ece - increase:.2f} to {100 * found.ece:.2f} %)",
    )


def _limit_class(
    allowed_pp: float | None, found: WorstClass | None, score: Score, names: Sequence[str] | None
) -> Iterator[Limit]:
    if allowed_pp is None or found is None:
        return
    z, discordance = simultaneous_z(found.classes), found.changed / found.total
    name = str(found.label) if names is None else names[found.label]
    yield Limit(
        f"{score.metric} of a class",
        "drops",
        found.drop_pp,
        found.interval_pp,
        allowed_pp,
        found.fewest,
        images_needed(allowed_pp / 100, discordance, z) if allowed_pp > 0 else None,
        f"{score.total:,} images of {found.classes:,} classes",
        "a class would do if nothing was lost",
        f" (class '{name}', {found.total:,} images)",
    )


def _exceeded(limit: Limit, on: str) -> list[str]:
    measured, high, allowed = limit.measured_pp, limit.interval_pp[1], limit.allowed_pp
    if (high if on == "upper" else measured) <= allowed + ROUNDING_PP:
        return []
    if on == "point":
        return [
            f"{limit.what} {limit.change} by {measured:.2f} pp{limit.details}, more than the {allowed:.2f} pp allowed"
        ]
    places = 2 if f"{high:.2f}" != f"{allowed:.2f}" else 5
    return [
        f"the 95 % interval of the {limit.noun} ends at {high:+.{places}f} pp, above the {allowed:.2f} pp allowed "
        f"(measured: {measured:+.2f} pp)"
    ]


def _weigh(verdict: Verdict, limit: Limit) -> Verdict:
    """Add to a verdict how sure it is of a limit, and how many images would make it so."""
    (low, high), allowed = limit.interval_pp, limit.allowed_pp
    if high <= allowed + ROUNDING_PP:
        return replace(verdict, proven=verdict.proven is not False)
    verdict = replace(verdict, proven=False)
    interval = f"95 % interval {low:+.2f} to {high:+.2f} pp"
    if low <= allowed and limit.needed is not None and limit.total < limit.needed:
        note = (
            f"{limit.images} cannot tell whether {limit.what} {limit.change} by more than {allowed:.2f} pp ({interval}); "
            f"about {_round_up(limit.needed):,} {limit.enough}"
        )
        needed = limit.needed if limit.is_main else verdict.images_needed
        return replace(verdict, images_needed=needed, notes=(*verdict.notes, note))
    if not verdict.passed:
        return verdict
    which = "drop" if limit.is_main else limit.noun
    note = f"passed by what was measured; the {which} may be more than {allowed:.2f} pp ({interval})"
    return replace(verdict, notes=(*verdict.notes, note))


def _round_up(count: int) -> int:
    """Round up to two digits, as many as a plan is good for."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // unit) * unit
