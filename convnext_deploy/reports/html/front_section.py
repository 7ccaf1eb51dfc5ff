"""What the page of a report shows of a network that was to get faster: accuracy against latency with intervals on both axes."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from convnext_deploy.evaluation.timing.front import Front, TimedPoint
from convnext_deploy.reports.front_table import (
    EXPLORED_COLUMNS,
    EXPLORED_TEXTS,
    EXPLORED_TITLE,
    FRONT_COLUMNS,
    FRONT_TEXTS,
    explored_cells,
    front_cells,
)
from convnext_deploy.reports.html import svg
from convnext_deploy.reports.html.accuracy_plot import interval_of
from convnext_deploy.reports.html.axes import linear_axis, percent_axis, positive_axis
from convnext_deploy.reports.html.tables import create_table
from convnext_deploy.reports.record import Accuracy, Report
from convnext_deploy.reports.to_ship import what_to_ship

_HEIGHT = 320


def front(report: Report) -> dict[str, Any] | None:
    """Return the plot of what was timed, the plot of what was explored, their tables, and what to ship; None without any."""
    found = report.front
    if found is None and report.front_not_timed is None:
        return None
    points = [] if found is None else list(_scored(found, report))
    explored = () if found is None else found.explored
    ship = what_to_ship(report)
    return {
        "plot": _timed_plot(points, report) if points else None,
        "caption": _caption(report),
        "table": None if found is None else create_table(FRONT_COLUMNS, FRONT_TEXTS, front_cells(found, report.rows)),
        "explored_title": EXPLORED_TITLE,
        "explored_plot": _explored_plot(found) if found is not None and len(explored) > 1 else None,
        "explored": create_table(EXPLORED_COLUMNS, EXPLORED_TEXTS, explored_cells(explored)) if explored else None,
        "ship": None if ship is None else f"{ship[0].upper()}{ship[1:]}.",
    }


def _scored(found: Front, report: Report) -> Iterator[tuple[TimedPoint, Accuracy]]:
    accuracies = {row.name: row.accuracy for row in report.rows}
    for point in found.points:
        if (accuracy := accuracies.get(point.name)) is not None:
            yield point, accuracy


def _timed_plot(points: list[tuple[TimedPoint, Accuracy]], report: Report) -> Markup:
    ends = [end for point, _ in points for end in (*point.ms_interval, point.ms)]
    frame = svg.Frame(
        positive_axis("time of one image, median, ms", ends),
        percent_axis(f"{report.metric.name}, %", [end for _, accuracy in points for end in interval_of(accuracy)]),
        _HEIGHT,
        key=(svg.Key("circle", "fp32", "what is replaced"), svg.Key("square", "int8", "compressed")),
    )
    marks = []
    for point, accuracy in points:
        color, shape = ("fp32", "circle") if point.is_reference else ("int8", "square")
        x, y = frame.x.place(point.ms), 100 - frame.y.place(100 * accuracy.value)
        low, high = (100 - frame.y.place(end) for end in interval_of(accuracy))
        left, right = (frame.x.place(end) for end in point.ms_interval)
        marks += [svg.line((x, low), (x, high), color, "error"), svg.line((left, y), (right, y), color, "error")]
        title = f"{point.name}: {point.ms:.3f} ms, {100 * accuracy.value:.2f} %"
        marks += [svg.mark(shape, x, y, color, title), svg.name(x, y, point.name, "start", "wide label", dx=9, dy=-9)]
    return svg.draw(
        frame, marks, f"{report.metric.name} against latency of {len(points)} artifacts; the table has the figures"
    )


def _explored_plot(found: Front) -> Markup | None:
    """Draw the divergence before training against the predicted time."""
    known = [(point, point.kl) for point in found.explored if point.kl is not None]
    if len(known) < 2:
        return None
    frame = svg.Frame(
        positive_axis("predicted time of one image, ms", [point.predicted_ms for point, _ in known], log=False),
        linear_axis("KL before training, nats", [0.0, *(kl for _, kl in known)]),
        _HEIGHT,
    )
    places = sorted((frame.x.place(point.predicted_ms), 100 - frame.y.place(kl)) for point, kl in known)
    marks = [svg.path(places, "int8")]
    for point, kl in known:
        title = f"{point.predicted_ms:.3f} ms ({point.ratio:.3f}), KL {kl:.3g}"
        marks.append(svg.mark("small", frame.x.place(point.predicted_ms), 100 - frame.y.place(kl), "int8", title))
    return svg.draw(
        frame, marks, f"KL against predicted latency of {len(known)} choices of widths; the table has the figures"
    )


def _caption(report: Report) -> str:
    machine = report.environment.get("cpu", "this machine")
    return (
        f"{report.metric.title} on {report.validation_images:,} validation images against the time of one image on {machine}, both "
        "with 95 % intervals: medians of interleaved, isolated processes."
    )
