"""Accuracy against latency of what is to replace a network, as text: one place for console, Markdown and page."""

import dataclasses
from collections.abc import Sequence

from convnext_deploy.evaluation.timing.front import ExploredPoint, Front, TimedPoint, judge_latency
from convnext_deploy.reports.record import StageRow

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
