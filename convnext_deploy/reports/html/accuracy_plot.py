"""Accuracy against latency: of the artifacts of one run, or of several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.reports.html.plotly_theme import axis, draw, literal
from convnext_deploy.reports.record import Accuracy, StageRow
from convnext_deploy.reports.stage_table import metric_name

_LOG_FROM = 4.0  # times the fastest: from here on a linear axis would crowd the fast ones
_SYMBOLS = {"FP32": "circle", "FP16": "diamond", "INT8": "square", "INT8, simulated": "square-open"}
_COLORS = {"FP32": "var(--fp32)", "FP16": "var(--fp16)", "INT8": "var(--int8)", "INT8, simulated": "var(--int8)"}
_OTHER = ("triangle-up", "var(--muted)")
_RUN_COLORS = 6  # var(--run0) to var(--run5)
_CLOSE = (0.2, 0.06)  # so near, as fractions of both axes of a wide plot, names would cover each other


@dataclass(frozen=True, eq=False)
class Point:
    """An artifact with a score and a latency. `run` is empty where there is only one."""

    row: StageRow
    accuracy: Accuracy
    latency: Latency
    run: str

    @property
    def score_percent(self) -> float:
        """What is scored."""
        return 100 * self.accuracy.value


def find_points(rows: Sequence[StageRow], run: str = "") -> list[Point]:
    """Return the artifacts that were scored and timed."""
    return [
        Point(row, row.accuracy, row.speed.latency, run)
        for row in rows
        if row.accuracy is not None and row.speed.latency is not None
    ]


def family(row: StageRow) -> str:
    """Return what a precision is called in the legend. INT8 in PyTorch is computed in FP32."""
    if row.identity.is_int8:
        return "INT8, simulated" if row.identity.format == "torch" else "INT8"
    return row.identity.precision.upper()


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: none is at least as fast and as accurate, and better in one of both.

    Points that were timed while the machine did other work are left out.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency.p50_ms, -p.score_percent)):
        if point.latency.loaded is not None:
            continue
        if not front or point.score_percent > front[-1].score_percent:
            front.append(point)
    return front


def accuracy_plot(points: Sequence[Point], *, comparable: bool = True) -> dict[str, Any]:
    """Draw top-1 against latency, with the Pareto front if the figures are `comparable`."""
    runs = list(dict.fromkeys(point.run for point in points))
    traces: list[dict[str, Any]] = []
    front = pareto_front(points) if comparable else []
    x_range, y_range, is_log = _ranges(points)
    if len(front) > 1:
        traces.append(
            {
                "type": "scatter",
                "x": [p.latency.p50_ms for p in front],
                "y": [p.score_percent for p in front],
                "mode": "lines",
                "line": {"shape": "hv", "dash": "dot", "width": 1.5, "color": "var(--muted)"},
                "name": "Pareto front",
                "hoverinfo": "skip",
            }
        )
    for run in runs:
        for kind in dict.fromkeys(family(point.row) for point in points):
            chosen = [point for point in points if point.run == run and family(point.row) == kind]
            if chosen:
                traces.append(_markers(chosen, kind, runs.index(run) if len(runs) > 1 else None, set(front)))
    if front:
        traces.append(_labels(front, x_range, y_range, is_log))
    ticks = (
        {"type": "log", "tickvals": _ticks(x_range), "ticktext": [f"{tick:g}" for tick in _ticks(x_range)]}
        if is_log
        else {}
    )
    return draw(
        traces,
        height=450,
        xaxis=axis("latency of one image, median, ms" + (", logarithmic" if is_log else ""), range=x_range, **ticks),
        yaxis=axis(f"{metric_name([point.row for point in points])}, %", range=y_range),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )


def describe_point(point: Point) -> list[str]:
    """Return the lines that hovering shows."""
    own, accuracy, latency = point.row.identity, point.accuracy, point.latency
    drop = "its own baseline"
    if (change := accuracy.change) is not None:
        low, high = change.interval_pp
        drop = f"drop {change.drop_pp:+.2f} pp [{low:+.2f}, {high:+.2f}] against {point.row.provenance.baseline}"
    return [
        f"{point.run}: {own.name}" if point.run else own.name,
        f"{own.variant} {own.format} {own.precision}, run by {accuracy.runner}",
        f"{accuracy.metric} {point.score_percent:.2f} %, {drop}",
        f"p50 {latency.p50_ms:.2f} ms, p90 {latency.p90_ms:.2f} ms, {own.size_bytes / 1e6:.1f} MB",
    ]


def _markers(points: Sequence[Point], kind: str, run: int | None, front: set[Point]) -> dict[str, Any]:
    symbol, color = _SYMBOLS.get(kind, _OTHER[0]), _COLORS.get(kind, _OTHER[1])
    texts = []
    for point in points:
        first, *rest = (literal(line) for line in describe_point(point))
        texts.append("<br>".join([f"<b>{first}</b>", *rest, *(["on the Pareto front"] if point in front else [])]))
    return {
        "type": "scatter",
        "x": [point.latency.p50_ms for point in points],
        "y": [point.score_percent for point in points],
        "mode": "markers",
        "name": literal(f"{points[0].run}, {kind}" if run is not None else kind),
        "marker": {
            "symbol": symbol,
            "size": 12,
            "color": color if run is None else f"var(--run{run % _RUN_COLORS})",
            "line": {"width": 2} if symbol.endswith("open") else {"width": 1.5, "color": "var(--surface)"},
        },
        "hovertext": texts,
        "hoverinfo": "text",
        "cliponaxis": False,
    }


def _ranges(points: Sequence[Point]) -> tuple[list[float], list[float], bool]:
    """Return the ranges of both axes, with room for labels, and whether that of latency is logarithmic (as Plotly wants it)."""
    xs, ys = [p.latency.p50_ms for p in points], [p.score_percent for p in points]
    is_log = max(xs) / min(xs) >= _LOG_FROM
    low, high = (math.log10(min(xs)), math.log10(max(xs))) if is_log else (min(xs), max(xs))
    room = 0.14 * (high - low) if is_log else 0.15 * high  # so that noise is not drawn as wide as a difference
    x_range = [low - room, high + room] if is_log else [max(0.0, low - room), high + room]
    span = max(max(ys) - min(ys), 0.2)
    middle = (max(ys) + min(ys)) / 2
    return x_range, [middle - 0.72 * span, middle + 0.72 * span], is_log


def _ticks(x_range: Sequence[float]) -> list[float]:
    """Return 1, 2, 5 and their decades within a range of exponents."""
    low, high = x_range
    found = [
        mantissa * 10.0**exponent for exponent in range(math.floor(low), math.ceil(high) + 1) for mantissa in (1, 2, 5)
    ]
    return [tick for tick in found if low <= math.log10(tick) <= high]


def _labels(front: Sequence[Point], x_range: Sequence[float], y_range: Sequence[float], is_log: bool) -> dict[str, Any]:
    """Return the names of the front's points, above and left of them, where by its definition no other point lies.

    Names of close points stand in one pile above the most accurate of them. Narrow pages have no room for names.
    """

    def place(point: Point) -> tuple[float, float]:
        x = math.log10(point.latency.p50_ms) if is_log else point.latency.p50_ms
        return (x - x_range[0]) / (x_range[1] - x_range[0]), (point.score_percent - y_range[0]) / (
            y_range[1] - y_range[0]
        )

    piles: list[list[Point]] = []
    for point in reversed(front):
        x, y = place(point)
        if piles and (above := place(piles[-1][-1]))[0] - x < _CLOSE[0] and above[1] - y < _CLOSE[1]:
            piles[-1].append(point)
        else:
            piles.append([point])
    return {
        "type": "scatter",
        "x": [pile[0].latency.p50_ms for pile in piles],
        "y": [pile[0].score_percent for pile in piles],
        "mode": "markers+text",
        "marker": {"size": 15, "opacity": 0},  # keeps the text off the mark below it
        "text": ["<br>".join(literal(point.row.name) for point in pile) for pile in piles],
        "textposition": ["top left" if place(pile[0])[0] > _CLOSE[0] else "top center" for pile in piles],
        "textfont": {"size": 12, "color": "var(--text)"},
        "hoverinfo": "skip",
        "showlegend": False,
        "cliponaxis": False,
        "meta": {"when": "wide"},
    }
