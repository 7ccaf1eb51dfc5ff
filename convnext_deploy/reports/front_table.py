"""Accuracy against latency of what is to replace a network, as text: one place for console, Markdown and page."""

import dataclasses
from collections.abc import Mapping, Sequence

from convnext_deploy.evaluation.timing.front import ExploredPoint, Front, TimedPoint, judge_latency
from convnext_deploy.evaluation.timing.speedup import judge_speed
from convnext_deploy.reports.record import Report, StageRow

FRONT_TITLE = "Accuracy against latency"
FRONT_COLUMNS = ("stage", "ms [95 %]", "of the latency [95 %]", "predicted", "top-1 %", "drop pp [95 %]", "verdict")
FRONT_TEXTS = ("stage", "verdict")
EXPLORED_TITLE = "What was explored before training"
EXPLORED_COLUMNS = ("predicted ms", "of the latency", "sum of losses", "KL", "agree %", "hidden units")
EXPLORED_TEXTS = ("hidden units",)
_NONE = "–"


def add_latency(row: StageRow, point: TimedPoint, front: Front) -> StageRow:
    """Return a row with the verdict on its latency."""
    own, found = row.verdict, judge_latency(point, front.loaded)
    if found.passed is None:
        return row
    return dataclasses.replace(
        row,
        verdict=dataclasses.replace(
            own,
            passed=found.passed and own.passed is not False,
            proven=found.proven and own.proven is not False,
            reasons=(*own.reasons, *found.reasons),
            notes=(*own.notes, *found.notes, *_prediction(point)),
        ),
    )


def _prediction(point: TimedPoint) -> list[str]:
    error = point.prediction_error
    if error is None:
        return []
    return [
        f"{point.predicted_ratio:.3f} of it was predicted, {abs(error):.1%} {'more' if error > 0 else 'less'} than measured"
    ]


def front_cells(front: Front, rows: Sequence[StageRow]) -> list[tuple[str, ...]]:
    """Return the texts of each artifact that was timed, in the order of `FRONT_COLUMNS`."""
    by_name = {row.name: row for row in rows}
    return [_cells(point, by_name.get(point.name)) for point in front.points]


def _cells(point: TimedPoint, row: StageRow | None) -> tuple[str, ...]:
    accuracy = None if row is None else row.accuracy
    change = None if accuracy is None else accuracy.change
    (low, high), (least, most) = point.ms_interval, point.ratio_interval
    ratio = f"{point.ratio:.3f} [{least:.3f}, {most:.3f}]"
    predicted = _NONE
    if point.predicted_ratio is not None and point.prediction_error is not None:
        predicted = f"{point.predicted_ratio:.3f} ({point.prediction_error:+.1%})"
    drop = _NONE
    if change is not None:
        drop = f"{change.drop_pp:+.2f} [{change.interval_pp[0]:+.2f}, {change.interval_pp[1]:+.2f}]"
    return (
        point.name,
        f"{point.ms:.3f} [{low:.3f}, {high:.3f}]",
        "1" if point.is_reference else f"{ratio} of {point.against}",
        predicted,
        _NONE if accuracy is None else f"{100 * accuracy.value:.2f}",
        drop,
        "what is replaced" if point.is_reference else _verdict(row),
    )


def _verdict(row: StageRow | None) -> str:
    if row is None or row.verdict.passed is None:
        return "not judged"
    if not row.verdict.passed:
        return "FAILED"
    return "passed, unproven" if row.verdict.proven is False else "passed"


def explored_cells(explored: Sequence[ExploredPoint]) -> list[tuple[str, ...]]:
    """Return the texts of what was explored, in the order of `EXPLORED_COLUMNS`."""
    return [
        (
            f"{point.predicted_ms:.3f}",
            f"{point.ratio:.3f}",
            f"{point.loss:.3g}",
            _NONE if point.kl is None else f"{point.kl:.3g}",
            _NONE if point.agreement is None else f"{100 * point.agreement:.1f}",
            " ".join(map(str, point.widths)),
        )
        for point in explored
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

    What fails for being slower than its own float form alone leaves that one: it has the same widths, and takes less time.
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
        if (other := _float_form(row, rows)) is not None:
            why = f"{_describe(point, row, point.name)}, and in float the same widths take less time still"
            return Choice(other.name, other.identity.artifact, why)
    names = " and ".join(point.name for point in goals)
    dense = next(point for point in front.points if point.is_reference)
    return Choice(dense.name, dense.path, f"{names} did not reach what was asked for", reached=False)


def what_to_ship(report: Report) -> str | None:
    """Return which artifact is to be shipped and why, in a sentence; None where nothing was to be faster."""
    choice = choose_to_ship(report)
    if choice is None:
        reason = report.front_not_timed
        return None if reason is None else f"not timed: {reason}"
    return f"ship {choice.name}, {choice.path}: {choice.why}"


def _float_form(row: StageRow, rows: Mapping[str, StageRow]) -> StageRow | None:
    """Return the float form of an INT8 artifact that failed for being slower than it, and for nothing else."""
    speed = row.speed.against_float
    if row.speed.ship is None or speed is None:
        return None
    others = {*row.verdict.reasons} - {*judge_speed(speed, row.provenance.gate.min_speedup).reasons}
    found = rows.get(speed.compared_with)
    return found if not others and found is not None and found.verdict.passed is not False else None


def _describe(point: TimedPoint, row: StageRow, who: str = "it") -> str:
    (low, high), change = point.ratio_interval, None if row.accuracy is None else row.accuracy.change
    drop = ""
    if change is not None:
        drop = f", at a drop of {change.drop_pp:+.2f} pp [{change.interval_pp[0]:+.2f}, {change.interval_pp[1]:+.2f}]"
        drop += f" against {row.provenance.baseline}"
    unproven = "; not proven, see above" if row.verdict.proven is False and row.verdict.passed is not False else ""
    ratio = f"{point.ratio:.3f} [{low:.3f}, {high:.3f}] of the time of {point.against}"
    return f"{who} takes {point.ms:.3f} ms, {ratio}{drop}{unproven}"
