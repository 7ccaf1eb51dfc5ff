"""How long answers take and how sure they are: distributions of latency, and reliability diagrams."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from convnext_deploy.metrics.calibration import Bin, Calibration
from convnext_deploy.metrics.intervals import wilson_interval
from convnext_deploy.reports.html import svg
from convnext_deploy.reports.html.accuracy_plot import Point, color_of
from convnext_deploy.reports.html.axes import Axis, linear_axis, positive_axis
from convnext_deploy.reports.html.tables import Table, create_table, number

_ROW = 44  # pixels, of the distribution of an artifact
_BINS = 60  # over the whole axis
_PERCENTILES = (50, 75, 90, 99)
_SLOWEST = 97.5  # percentile of the slowest artifact, up to which the axis goes
_LONGEST_NAME = 24


def latency_plot(points: Sequence[Point]) -> Markup | None:
    """Draw how the times of single calls are distributed, an artifact a row; None where they were not kept."""
    timed = [point for point in points if point.latency.times_ms]
    if not timed:
        return None
    low = min(min(point.latency.times_ms) for point in timed)
    high = max(float(np.percentile(point.latency.times_ms, _SLOWEST)) for point in timed)
    frame = svg.Frame(
        positive_axis("latency of one image, ms", [low, high], room=0.04), _rows(timed), _ROW * len(timed)
    )
    marks: list[Markup] = []
    runs = list(dict.fromkeys(point.run for point in points))
    for row, point in enumerate(timed):
        marks += _distribution(point, row, len(timed), frame.x, color_of(point, runs))
    return svg.draw(frame, marks, f"Distribution of the latency of {len(timed)} artifacts; the table has the figures")


def _rows(points: Sequence[Point]) -> Axis:
    def shown(name: str) -> str:
        return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"

    names = tuple((len(points) - row - 0.6, shown(point.row.name)) for row, point in enumerate(points))
    return Axis("", 0.0, float(len(points)), names, grid=False)


def _distribution(point: Point, row: int, rows: int, axis: Axis, color: str) -> Iterator[Markup]:
    """Yield the histogram over a base line, and marks at the median and the 90th percentile."""
    times = np.clip(point.latency.times_ms, axis.low, axis.high)
    places = np.array([axis.place(float(time)) for time in times])
    counts, edges = np.histogram(places, bins=_BINS, range=(0.0, 100.0))
    foot, height = 100 * (row + 0.88) / rows, 100 * 0.78 / rows
    tops = foot - height * counts / counts.max()
    corners = [(float(edge), float(top)) for i, top in enumerate(tops) for edge in edges[i : i + 2]]
    yield svg.path([(0.0, foot), *corners, (100.0, foot)], color, "area", closed=True)
    yield svg.path(corners, color, "outline")
    for value, kind in ((point.latency.p50_ms, "median"), (point.latency.p90_ms, "dots")):
        at = axis.place(min(axis.high, max(axis.low, value)))
        yield svg.line((at, foot - height), (at, foot), color, kind)
    title = f"{point.row.name}\n" + ", ".join(f"{name} {value} ms" for name, value in _figures(point))
    yield svg.bar((0, 100), (foot - height, foot), color, title, "clear")


def _figures(point: Point) -> Iterator[tuple[str, str]]:
    times = point.latency.times_ms
    yield "fastest", number(min(times))
    for percentile in _PERCENTILES:
        yield f"p{percentile}", number(float(np.percentile(times, percentile)))
    yield "slowest", number(max(times))


def latency_table(points: Sequence[Point]) -> Table:
    """Return the percentiles of the times of single calls."""
    timed = [point for point in points if point.latency.times_ms]
    several = any(point.run for point in timed)
    titles = [*(["run"] if several else []), "artifact", "calls"]
    titles += [f"{name} ms" for name, _ in _figures(timed[0])]
    rows = [
        [
            *([point.run] if several else []),
            point.row.name,
            str(len(point.latency.times_ms)),
            *(value for _, value in _figures(point)),
        ]
        for point in timed
    ]
    return create_table(titles, ("run", "artifact"), rows)


def reliability_legend() -> Markup:
    """Return what the marks in reliability diagrams mean."""
    return svg.legend(
        [
            svg.Key("circle", "fp32", "right answers, 95 % interval"),
            svg.Key("line", "muted", "baseline"),
            svg.Key("dash", "muted", "as sure as right"),
            svg.Key("square", "band", "how many images are that sure"),
        ]
    )


def reliability_plot(found: Calibration, baseline: Calibration | None, color: str) -> Markup:
    """Draw the share of right answers against the confidence, with 95 % intervals and the line of a perfect classifier."""
    shown = [found.bins, *([baseline.bins] if baseline is not None else [])]
    low = 100 * min((bin_.confidence for bins in shown for bin_ in bins), default=0.0)
    axis = linear_axis("", (max(0.0, math.floor(low / 10) * 10), 100.0), room=0.0, within=(0.0, 100.0))
    x = Axis("confidence, %", axis.low, axis.high + 0.03 * (axis.high - axis.low), axis.ticks, grid=False)
    y = Axis("right, %", 0.0, 100.0, ((0.0, "0"), (25.0, "25"), (50.0, "50"), (75.0, "75"), (100.0, "100")))
    frame = svg.Frame(x, y, 230)
    marks = [svg.path([(x.place(v), 100 - y.place(v)) for v in (axis.low, 100.0)], "muted", "dash")]
    total = sum(bin_.images for bin_ in found.bins)
    for bin_ in found.bins:  # how many images are that sure
        at, half = x.place(100 * bin_.confidence), 1.2
        marks.append(
            svg.bar((at - half, at + half), (100, 100 - 30 * bin_.images / max(1, total)), "band", kind="full")
        )
    if baseline is not None and baseline.bins:
        marks.append(
            svg.path([(x.place(100 * b.confidence), 100 - y.place(100 * b.right)) for b in baseline.bins], "muted")
        )
    for bin_ in found.bins:
        at = x.place(100 * bin_.confidence)
        low_end, high_end = _interval(bin_)
        marks.append(svg.line((at, 100 - y.place(low_end)), (at, 100 - y.place(high_end)), color, "error"))
        title = (
            f"{100 * bin_.right:.1f} % right [{low_end:.1f}, {high_end:.1f}] at {100 * bin_.confidence:.1f} % confidence\n"
            f"{bin_.images:,} images"
        )
        marks.append(svg.mark("circle", at, 100 - y.place(100 * bin_.right), color, title))
    return svg.draw(frame, marks, "Share of right answers against confidence; the table has the figures")


def _interval(found: Bin) -> tuple[float, float]:
    low, high = wilson_interval(round(found.right * found.images), found.images)
    return 100 * low, 100 * high


def reliability_table(found: Calibration) -> Table:
    """Return the bins of a reliability diagram."""
    rows = []
    for bin_ in found.bins:
        low, high = _interval(bin_)
        sure, right = 100 * bin_.confidence, 100 * bin_.right
        rows.append(
            [f"{sure:.1f}", f"{bin_.images:,}", f"{right:.1f}", f"{low:.1f} to {high:.1f}", f"{right - sure:+.1f}"]
        )
    return create_table(("confidence %", "images", "right %", "95 % interval", "right − sure, pp"), (), rows)
