"""What to ship: of a run that was to make something faster, and of any other; one answer for every view."""

import dataclasses
from collections.abc import Mapping

from convnext_deploy.evaluation.timing.front import TimedPoint
from convnext_deploy.evaluation.timing.speedup import judge_speed
from convnext_deploy.reports.record import Report, StageRow


def offered(report: Report) -> list[StageRow]:
    """Return the artifacts of which one may be shipped: those that failed no gate.

    What was made to compare with alone is none of them, unless something failed for being slower.
    """
    better = {row.speed.ship for row in report.rows}
    return [
        row
        for row in report.rows
        if row.verdict.passed is not False and (not row.provenance.for_comparison or row.identity.artifact in better)
    ]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The artifact to ship of what was timed, and why, in words that follow its name; `reached`: it has what was asked for."""

    name: str
    path: str
    why: str
    reached: bool = True


def choose_to_ship(report: Report) -> Choice | None:
    """Return the fastest of what keeps all that was asked for; otherwise what is replaced. None where nothing was timed.

    What fails for being slower than its own float baseline alone leaves that one: it is the same network, and takes less time.
    """
    front = report.front
    if front is None:
        return None
    rows = {row.name: row for row in report.rows}
    goals = [point for point in front.points if not point.is_reference]
    for point in sorted(goals, key=lambda point: point.ms):
        if (row := rows.get(point.name)) is None:
            continue
        if row.verdict.passed is not False:
            return Choice(point.name, point.path, _describe(point, row))
        if (other := _float_baseline(row, rows)) is not None:
            why = f"{_describe(point, row, point.name)}, and in float the same network takes less time still"
            return Choice(other.name, other.identity.artifact, why)
    why = f"{' and '.join(point.name for point in goals)} did not reach what was asked for"
    dense = next(point for point in front.points if point.is_reference)
    own = rows.get(dense.name)
    if own is None or own.verdict.passed is not False:
        return Choice(dense.name, dense.path, why, reached=False)
    if (other := _float_baseline(own, rows)) is not None:
        return Choice(other.name, other.identity.artifact, f"{why}, and {dense.name} is slower than it", reached=False)
    return Choice(dense.name, dense.path, f"{why}; nor did {dense.name}, which they were to replace", reached=False)


def what_to_ship(report: Report) -> str | None:
    """Return which artifact is to be shipped and why, in a sentence; None where nothing was to be faster."""
    choice = choose_to_ship(report)
    if choice is None:
        reason = report.front_not_timed
        return None if reason is None else f"not timed: {reason}"
    return f"ship {choice.name}, {choice.path}: {choice.why}"


def _float_baseline(row: StageRow, rows: Mapping[str, StageRow]) -> StageRow | None:
    """Return the float baseline of an INT8 artifact that failed for being slower than it, and for nothing else."""
    speed = row.speed.against_float
    if row.speed.ship is None or speed is None:
        return None
    found = rows.get(speed.compared_with)
    others = {*row.verdict.reasons} - {*judge_speed(speed, row.provenance.gate.min_speedup).reasons}
    if others or found is None or found.verdict.passed is False or found.accuracy is None or row.accuracy is None:
        return None
    # the gate of the INT8 file is against another artifact than that of its float baseline, and holds for what takes its place
    change, most = row.accuracy.change, row.provenance.gate.max_top1_drop_pp
    lost = 0.0 if change is None else change.drop_pp + 100 * (row.accuracy.value - found.accuracy.value)
    return found if most is None or lost <= most else None


def _describe(point: TimedPoint, row: StageRow, who: str = "it") -> str:
    (low, high), change = point.ratio_interval, None if row.accuracy is None else row.accuracy.change
    drop = ""
    if change is not None:
        drop = f", at a drop of {change.drop_pp:+.2f} pp [{change.interval_pp[0]:+.2f}, {change.interval_pp[1]:+.2f}]"
        drop += f" against {row.provenance.baseline}"
    unproven = "; not proven, see above" if row.verdict.proven is False and row.verdict.passed is not False else ""
    ratio = f"{point.ratio:.3f} [{low:.3f}, {high:.3f}] of the time of {point.against}"
    return f"{who} takes {point.ms:.3f} ms, {ratio}{drop}{unproven}"
