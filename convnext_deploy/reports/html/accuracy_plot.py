"""Accuracy against latency: of the artifacts of one run, or of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from convnext_deploy.reports.html.plotly_theme import axis, draw, literal
from convnext_deploy.reports.record import StageRow

_LOG_FROM = 4.0  # times the fastest: from here on a linear axis would crowd the fast ones
_SYMBOLS = {"FP32": "circle", "FP16": "diamond", "INT8": "square", "INT8, simulated": "square-open"}
_COLORS = {"FP32": "var(--fp32)", "FP16": "var(--fp16)", "INT8": "var(--int8)", "INT8, simulated": "var(--int8)"}
_OTHER = ("triangle-up", "var(--muted)")
_RUN_COLORS = 6  # var(--run0) to var(--run5)
# Widths and heights in pixels of the plotting area for which labels are set apart; the page picks them by these names.
_SIZES = {"wide": (860, 330), "narrow": (250, 220)}
_LETTER, _LINE, _MOST_LINES = 6.8, 15, 4
_NEAR = 22  # so close, in both directions, points count as one place
_Box = tuple[float, float, float, float]  # left, right, bottom, top


@dataclass(frozen=True, eq=False)
class Point:
    """An artifact with a score and a latency. `run` is empty where there is only one."""

    row: StageRow
    run: str = ""

    @property
    def latency_ms(self) -> float:
        """Median of single images."""
        assert self.row.latency_p50_ms is not None
        return self.row.latency_p50_ms

    @property
    def top1_percent(self) -> float:
        """Top-1."""
        assert self.row.top1 is not None
        return 100 * self.row.top1


def find_points(rows: Sequence[StageRow], run: str = "") -> list[Point]:
    """Return the artifacts that were scored and timed."""
    return [Point(row, run) for row in rows if row.top1 is not None and row.latency_p50_ms]


def family(row: StageRow) -> str:
    """Return what a precision is called in the legend. INT8 in PyTorch is computed in FP32."""
    if row.precision.startswith("int8"):
        return "INT8, simulated" if row.format == "torch" else "INT8"
    return row.precision.upper()


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: none is at least as fast and as accurate, and better in one of both."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.top1_percent)):
        if not front or point.top1_percent > front[-1].top1_percent:
            front.append(point)
    return front


def accuracy_plot(points: Sequence[Point], *, comparable: bool = True) -> dict[str, Any]:
    """Draw top-1 against latency, with the Pareto front if the figures are `comparable`."""
    runs = list(dict.fromkeys(point.run for point in points))
    figure = go.Figure()
    front = pareto_front(points) if comparable else []
    x_range, y_range, is_log = _ranges(points)
    if len(front) > 1:
        figure.add_scatter(
            x=[p.latency_ms for p in front],
            y=[p.top1_percent for p in front],
            mode="lines",
            line={"shape": "hv", "dash": "dot", "width": 1.5, "color": "var(--muted)"},
            name="Pareto front",
            hoverinfo="skip",
        )
    for run in runs:
        for kind in dict.fromkeys(family(point.row) for point in points):
            chosen = [point for point in points if point.run == run and family(point.row) == kind]
            if chosen:
                figure.add_scatter(**_markers(chosen, kind, runs.index(run) if len(runs) > 1 else None, set(front)))
    for name, size in _SIZES.items():
        for labels in _labels(points, x_range, y_range, size, is_log):
            figure.add_scatter(**labels, meta={"when": name})
    ticks = (
        {"type": "log", "tickvals": _ticks(x_range), "ticktext": [f"{tick:g}" for tick in _ticks(x_range)]}
        if is_log
        else {}
    )
    figure.update_layout(
        xaxis=axis("latency of one image, median, ms" + (", logarithmic" if is_log else ""), range=x_range, **ticks),
        yaxis=axis("top-1, %", range=y_range),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )
    return draw(figure, height=450)


def describe_point(point: Point) -> list[str]:
    """Return the lines that hovering shows."""
    row = point.row
    drop = "its own baseline"
    if row.top1_drop_pp is not None and row.top1_drop_interval_pp is not None:
        low, high = row.top1_drop_interval_pp
        drop = f"drop {row.top1_drop_pp:+.2f} pp [{low:+.2f}, {high:+.2f}] against {row.baseline}"
    p90 = "" if row.latency_p90_ms is None else f", p90 {row.latency_p90_ms:.2f} ms"
    return [
        f"{point.run}: {row.name}" if point.run else row.name,
        f"{row.variant} {row.format} {row.precision}, run by {row.runner or 'an unknown runner'}",
        f"top-1 {point.top1_percent:.2f} %, {drop}",
        f"p50 {point.latency_ms:.2f} ms{p90}, {row.size_bytes / 1e6:.1f} MB",
    ]


def _markers(points: Sequence[Point], kind: str, run: int | None, front: set[Point]) -> dict[str, Any]:
    symbol, color = _SYMBOLS.get(kind, _OTHER[0]), _COLORS.get(kind, _OTHER[1])
    texts = []
    for point in points:
        first, *rest = (literal(line) for line in describe_point(point))
        texts.append("<br>".join([f"<b>{first}</b>", *rest, *(["on the Pareto front"] if point in front else [])]))
    return {
        "x": [point.latency_ms for point in points],
        "y": [point.top1_percent for point in points],
        "mode": "markers",
        "name": literal(f"{points[0].run}, {kind}" if run is not None else kind),
        "marker": {
            "symbol": symbol,
            "size": 12,
            "color": color if run is None else f"var(--run{run % _RUN_COLORS})",
            "line": {"width": 2 if symbol.endswith("open") else 1.5, "color": "var(--surface)"}
            if not symbol.endswith("open")
            else {"width": 2},
        },
        "hovertext": texts,
        "hoverinfo": "text",
        "cliponaxis": False,
    }


def _ranges(points: Sequence[Point]) -> tuple[list[float], list[float], bool]:
    """Return the ranges of both axes, with room for labels, and whether that of latency is logarithmic (as Plotly wants it)."""
    xs, ys = [p.latency_ms for p in points], [p.top1_percent for p in points]
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


def _labels(
    points: Sequence[Point], x_range: Sequence[float], y_range: Sequence[float], size: tuple[int, int], is_log: bool
) -> Iterator[dict[str, Any]]:
    """Yield the names beside the points: those of points that lie close to each other stand in one pile of lines."""
    width, height = size

    def place(point: Point) -> tuple[float, float]:
        x = math.log10(point.latency_ms) if is_log else point.latency_ms
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        return width * across, height * (point.top1_percent - y_range[0]) / (y_range[1] - y_range[0])

    piles: list[list[Point]] = []
    for point in sorted(points, key=lambda p: -p.top1_percent):
        for pile in piles:
            if all(abs(a - b) < _NEAR for a, b in zip(place(pile[0]), place(point), strict=True)):
                pile.append(point)
                break
        else:
            piles.append([point])
    taken: list[_Box] = []
    for pile in piles:
        places = [place(point) for point in pile]
        names = [point.row.name for point in sorted(pile, key=lambda point: point.latency_ms)]
        if len(names) > _MOST_LINES:
            names[_MOST_LINES - 1 :] = [f"and {len(names) - _MOST_LINES + 1} more"]
        half = _LETTER * max(map(len, names)) / 2
        across = sum(x for x, _ in places) / len(places)
        side, left = "center", across - half
        if across < half:
            side, left = "right", across
        elif across > width - half:
            side, left = "left", across - 2 * half
        # the text stands above the highest of its points, below the lowest where there is no room
        top, low = max(y for _, y in places) + 8, min(y for _, y in places) - 8
        boxes = {
            is_above: (left, left + 2 * half, bottom, bottom + _LINE * len(names))
            for is_above, bottom in ((True, top), (False, low - _LINE * len(names)))
        }
        marks = [(x - 7, x + 7, y - 7, y + 7) for x, y in (place(other) for other in points if other not in pile)]
        free = [
            is_above
            for is_above, box in boxes.items()
            if box[2] >= 0 and box[3] <= height and not _hits(box, taken + marks)
        ]
        if not free:
            continue  # better none than two on top of each other: hovering and the table name the point as well
        is_above = free[0]
        taken.append(boxes[is_above])
        x = x_range[0] + across / width * (x_range[1] - x_range[0])
        yield {
            "x": [10**x if is_log else x],
            "y": [(max if is_above else min)(point.top1_percent for point in pile)],
            "mode": "markers+text",
            "marker": {"size": 15, "opacity": 0},  # keeps the text off the mark below it
            "text": ["<br>".join(map(literal, names))],
            "textposition": f"{'top' if is_above else 'bottom'} {side}",
            "textfont": {"size": 12, "color": "var(--text)"},
            "hoverinfo": "skip",
            "showlegend": False,
            "cliponaxis": False,
        }


def _hits(box: _Box, others: Sequence[_Box]) -> bool:
    return any(box[0] < b[1] and b[0] < box[1] and box[2] < b[3] and b[2] < box[3] for b in others)
