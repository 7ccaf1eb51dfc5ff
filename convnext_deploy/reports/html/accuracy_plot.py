"""Accuracy against latency: of the artifacts of one run, or of several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.metrics.intervals import wilson_interval
from convnext_deploy.reports.html import svg
from convnext_deploy.reports.html.axes import percent_axis, positive_axis
from convnext_deploy.reports.record import Accuracy, StageRow
from convnext_deploy.reports.stage_table import metric_name

_SIMULATED = ", simulated"
_MARKS = {"FP32": "circle", "FP16": "diamond", "INT8": "square", "FP8": "triangle"}
_COLORS = {"FP32": "fp32", "FP16": "fp16", "INT8": "int8", "FP8": "int8"}
_OTHER = ("triangle", "muted")
RUN_COLORS = 6  # --run0 to --run5
_CLOSE = (20.0, 6.0)  # so near, in per cent of both axes of a wide plot, names would cover each other
_HEIGHT = 360


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
    """Return what a precision is called in the legend. INT8 or FP8 in PyTorch is computed in FP32."""
    if kind := row.identity.quantized_type:
        return f"{kind}{_SIMULATED if row.identity.format == 'torch' else ''}"
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


def interval_of(accuracy: Accuracy) -> tuple[float, float]:
    """Return the 95 % interval of what is scored in per cent: of a share of images that of Wilson 1927."""
    if accuracy.multi_label is not None:
        low, high = accuracy.multi_label.map_interval
        return 100 * low, 100 * high
    if accuracy.top1 is None:
        return 100 * accuracy.value, 100 * accuracy.value
    low, high = wilson_interval(round(accuracy.top1 * accuracy.total), accuracy.total)
    return 100 * low, 100 * high


def accuracy_plot(points: Sequence[Point], *, comparable: bool = True, batch_size: int = 1) -> Markup:
    """Draw top-1 against latency, with the Pareto front if the figures are `comparable`; all times are of that batch size."""
    runs = list(dict.fromkeys(point.run for point in points))
    front = pareto_front(points) if comparable else []
    metric = metric_name([point.row for point in points])
    frame = svg.Frame(
        positive_axis(
            f"latency of {'one image' if batch_size == 1 else f'{batch_size} images'}, median, ms",
            [point.latency.p50_ms for point in points],
        ),
        percent_axis(f"{metric}, %", [end for point in points for end in interval_of(point.accuracy)]),
        _HEIGHT,
        key=tuple(_key(points, runs, drawn_front=len(front) > 1)),
    )
    places = {point: place_of(point, frame) for point in points}
    marks = [*_front(front, places), *_errors(points, runs, frame)]
    for point in points:
        title = "\n".join([*describe_point(point), *(["on the Pareto front"] if point in front else [])])
        shape, hollow = mark_of(point)
        marks.append(svg.mark(shape, *places[point], color_of(point, runs), title, hollow=hollow))
    marks += _names(front, places)
    return svg.draw(frame, marks, f"{metric} against latency of {len(points)} artifacts; the table has the figures")


def place_of(point: Point, frame: svg.Frame) -> tuple[float, float]:
    """Return where a point lies in a frame, in per cent from the left and the top."""
    return frame.x.place(point.latency.p50_ms), 100 - frame.y.place(point.score_percent)


def mark_of(point: Point) -> tuple[str, bool]:
    """Return the mark of a point's precision, and whether it is hollow."""
    kind = family(point.row)
    return _MARKS.get(kind.removesuffix(_SIMULATED), _OTHER[0]), kind.endswith(_SIMULATED)


def color_of(point: Point, runs: Sequence[str]) -> str:
    """Return the colour of a point: of its precision, or of its run where there are several."""
    if len(runs) > 1:
        return f"run{runs.index(point.run) % RUN_COLORS}"
    return _COLORS.get(family(point.row).removesuffix(_SIMULATED), _OTHER[1])


def describe_point(point: Point) -> list[str]:
    """Return the lines that hovering shows."""
    own, accuracy, latency = point.row.identity, point.accuracy, point.latency
    drop = "its own baseline"
    if (change := accuracy.change) is not None:
        low, high = change.interval_pp
        drop = f"drop {change.drop_pp:+.2f} pp [{low:+.2f}, {high:+.2f}] against {point.row.provenance.baseline}"
    low, high = interval_of(accuracy)
    interval = f" [{low:.2f}, {high:.2f}]" if low < high else ""
    return [
        f"{point.run}: {own.name}" if point.run else own.name,
        f"{own.variant} {own.format} {own.precision}, run by {accuracy.runner}",
        f"{accuracy.metric} {point.score_percent:.2f} %{interval}, {drop}",
        f"p50 {latency.p50_ms:.2f} ms, p90 {latency.p90_ms:.2f} ms, {own.size_bytes / 1e6:.1f} MB",
    ]


def _key(points: Sequence[Point], runs: Sequence[str], *, drawn_front: bool) -> Iterator[svg.Key]:
    for run in runs:
        seen: set[str] = set()
        for point in (point for point in points if point.run == run):
            kind = family(point.row)
            if kind not in seen:
                seen.add(kind)
                shape, hollow = mark_of(point)
                yield svg.Key(shape, color_of(point, runs), f"{run}, {kind}" if len(runs) > 1 else kind, hollow)
    if drawn_front:
        yield svg.Key("dots", "muted", "Pareto front")


def _front(front: Sequence[Point], places: dict[Point, tuple[float, float]]) -> Iterator[Markup]:
    if len(front) > 1:
        corners = [places[front[0]]]
        for point in front[1:]:
            x, y = places[point]
            corners += [(x, corners[-1][1]), (x, y)]
        yield svg.path(corners, "muted", "dots")


def _errors(points: Sequence[Point], runs: Sequence[str], frame: svg.Frame) -> Iterator[Markup]:
    """Yield the 95 % intervals of top-1, and from the first to the third quartile of the latency."""
    for point in points:
        x, y = place_of(point, frame)
        low, high = (100 - frame.y.place(end) for end in interval_of(point.accuracy))
        yield svg.line((x, low), (x, high), color_of(point, runs), "error")
        if point.latency.times_ms:
            left, right = (frame.x.place(float(t)) for t in np.percentile(point.latency.times_ms, (25, 75)))
            yield svg.line((max(0.0, left), y), (min(100.0, right), y), color_of(point, runs), "error")


def _names(front: Sequence[Point], places: dict[Point, tuple[float, float]]) -> Iterator[Markup]:
    """Yield the names of the front's points, above and left of them, where by its definition no other point lies.

    Names of close points stand in one pile above the most accurate of them. Narrow pages have no room for names.
    """
    piles: list[list[Point]] = []
    for point in reversed(front):
        x, y = places[point]
        if piles and (above := places[piles[-1][-1]])[0] - x < _CLOSE[0] and y - above[1] < _CLOSE[1]:
            piles[-1].append(point)
        else:
            piles.append([point])
    for pile in piles:
        x, y = places[pile[0]]
        anchor, dx = ("end", -9) if x > _CLOSE[0] else ("start", 9)
        for number, point in enumerate(reversed(pile)):
            yield svg.name(x, y, point.row.name, anchor, "wide label", dx=dx, dy=-9 - 15 * number)
