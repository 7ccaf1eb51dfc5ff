"""Tables of the HTML pages: columns with titles, and cells of text that a badge may colour."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convnext_deploy.artifacts.details import Selection
from convnext_deploy.evaluation.timing.speedup import Speed
from convnext_deploy.metrics.multi_label import MultiLabel
from convnext_deploy.reports.html.accuracy_plot import Point, pareto_front
from convnext_deploy.reports.label_table import LABEL_COLUMNS, label_cells
from convnext_deploy.reports.quality_table import QUALITY_COLUMNS, quality_rows
from convnext_deploy.reports.record import Layer, StageRow
from convnext_deploy.reports.stage_table import (
    cells,
    columns,
    drop_text,
    metric_name,
    step_cells,
    step_columns,
    verdict,
)

NONE = "–"
_FIRST = ("stage", "verdict", "drop pp [95 %]")  # of the table of stages
_LAST = ("vs source pp", "time s", "artifact")


@dataclass(frozen=True)
class Column:
    """A title, and whether the cells below are numbers."""

    title: str
    is_number: bool


@dataclass(frozen=True)
class Cell:
    """A text; `badge` is `passed`, `failed`, `warned`, `plain`, or None for none."""

    text: str
    badge: str | None = None


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def create_table(titles: Sequence[str], texts: Iterable[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """Return a table; `texts` are the titles of the columns that hold no numbers."""
    words = set(texts)
    columns = tuple(Column(title, title not in words) for title in titles)
    return Table(columns, tuple(tuple(Cell(c) if isinstance(c, str) else c for c in row) for row in rows))


def number(value: float | None, digits: int = 2, scale: float = 1.0, sign: str = "") -> str:
    """Return a number as text; a dash for None."""
    return NONE if value is None else f"{scale * value:{sign}.{digits}f}"


def small_number(value: float | None) -> str:
    """Return a number of any size as text of three digits; a dash for None."""
    return NONE if value is None else f"{value:.3g}"


def badge_of(row: StageRow) -> str:
    """Return the badge of a row's verdict."""
    if row.verdict.passed is False:
        return "failed"
    if row.not_run is not None or row.verdict.passed is None:
        return "plain"
    return "warned" if row.verdict.proven is False else "passed"


def verdict_cell(row: StageRow) -> Cell:
    """Return the verdict of a row."""
    return Cell(verdict(row), badge_of(row))


def stage_table(rows: Sequence[StageRow]) -> Table:
    """Return the table of all stages, what matters most first: a phone shows the columns on the left."""
    found = columns(rows)
    titles = [title for title in _FIRST if title in found]
    titles += [title for title in found if title not in (*titles, *_LAST)] + list(_LAST)
    lines = [
        [
            verdict_cell(row) if title == "verdict" else text
            for title, text in zip(titles, cells(row, titles), strict=True)
        ]
        for row in rows
    ]
    return create_table(titles, ("stage", "artifact", "verdict"), lines)


def quality_table(rows: Sequence[StageRow]) -> Table | None:
    """Return the table of calibration and the worst class; None where neither was measured."""
    found = quality_rows(rows)
    return create_table(QUALITY_COLUMNS, ("stage", "worst class"), found) if found else None


def label_table(found: MultiLabel, names: Sequence[str]) -> Table:
    """Return the figures of the labels of multi-label data."""
    return create_table(LABEL_COLUMNS, ("label",), label_cells(found, names))


def speed_table(speed: Speed) -> Table:
    """Return the layers that are to be named of an INT8 artifact, beside those of its float baseline."""
    titles = ("layer", "ms", "float ms", "conversions ms", "more, % of all kernels under the profiler")
    rows = [
        (
            layer.layer,
            number(layer.ms, 3),
            number(layer.reference_ms, 3),
            number(layer.conversions_ms, 3),
            number(layer.share, 1, 100, "+"),
        )
        for layer in speed.layers
    ]
    return create_table(titles, ("layer",), rows)


def point_table(points: Sequence[Point], *, comparable: bool = True) -> Table:
    """Return what is measured of each artifact in the plot, the fastest first."""
    front = set(pareto_front(points)) if comparable else set()
    several = any(point.run for point in points)
    metric = metric_name([point.row for point in points])
    second = metric.replace("top-1", "top-5")
    titles = [
        "artifact",
        "precision",
        "runner",
        f"{metric} %",
        f"{second} %",
        "drop pp [95 %]",
        "p50 ms",
        "p90 ms",
        "size MB",
        "front",
    ]
    rows = [
        [
            *([point.run] if several else []),
            point.row.name,
            f"{point.row.identity.format} {point.row.identity.precision}",
            f"{point.accuracy.runner} ({point.accuracy.device})",
            number(point.score_percent),
            number(point.accuracy.top5, scale=100),
            drop_text(point.row),
            number(point.latency.p50_ms),
            number(point.latency.p90_ms),
            number(point.row.identity.size_bytes / 1e6, 1),
            "yes" if point in front else "",
        ]
        for point in sorted(points, key=lambda point: point.latency.p50_ms)
    ]
    if not comparable:
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return create_table(["run"] * several + titles, ("run", "artifact", "precision", "runner", "front"), rows)


def layer_table(layers: Sequence[Layer]) -> Table:
    """Return the layers in the network's order; what nobody measured has no column."""
    measured = any(layer.kl is not None for layer in layers)
    titles = ["layer", "precision", "weights", *(("KL, nats", "changed %", "MACs, million") if measured else ())]
    rows = []
    for layer in layers:
        effect = (
            small_number(layer.kl),
            number(layer.changed, scale=100),
            NONE if layer.macs is None else f"{layer.macs / 1e6:,.2f}",
        )
        rows.append([layer.name, layer.choice, f"{layer.weights:,}", *(effect if measured else ())])
    return create_table(titles, ("layer", "precision"), rows)


def step_table(selection: Selection) -> Table:
    """Return the steps of a fallback sequence that were tried."""
    badges = {"passed": "passed", "selected": "warned"}
    texts = [step_cells(step, selection) for step in selection.steps]
    rows: list[tuple[str | Cell, ...]] = [(*line[:-1], Cell(line[-1], badges.get(line[-1]))) for line in texts]
    return create_table(step_columns(selection), ("step", ""), rows)


_ASIDE = "set aside %"  # of training images, by which the best epoch was chosen


def _score(epoch: Mapping[str, float | None], images: str) -> float | None:
    """Return what was scored of the weights themselves after an epoch."""
    return epoch.get(f"{images}_top1", epoch.get(f"{images}_map"))


def epoch_table(epochs: Sequence[Mapping[str, float | None]]) -> Table:
    """Return what a training measured after each epoch."""
    scored = "mAP" if any("validation_map" in epoch for epoch in epochs) else "top-1"
    titles = ("epoch", "training loss", "validation loss", f"{scored} %", _ASIDE, "learning rate", "images/s")
    rows = [
        (
            f"{epoch.get('epoch') or place:g}",
            number(epoch.get("train_loss"), 4),
            number(epoch.get("validation_loss"), 4),
            *(number(_score(epoch, images), scale=100) for images in ("validation", "selection")),
            small_number(epoch.get("learning_rate")),
            number(epoch.get("images_per_s"), 0),
        )
        for place, epoch in enumerate(epochs, 1)
    ]
    kept = [i for i in range(len(titles)) if i == 0 or any(line[i] != NONE for line in rows)]
    return create_table([titles[i] for i in kept], (), [[line[i] for i in kept] for line in rows])
