"""What the sections of a report's page show of speed, calibration, layers and training: plots with their tables."""

from collections.abc import Iterator
from typing import Any

from convnext_deploy.config.stages import STAGE_KINDS
from convnext_deploy.reports.html.accuracy_plot import accuracy_plot, color_of, find_points, pareto_front
from convnext_deploy.reports.html.answer_plots import (
    latency_plot,
    latency_table,
    reliability_legend,
    reliability_plot,
    reliability_table,
)
from convnext_deploy.reports.html.epochs import describe_best
from convnext_deploy.reports.html.plots import curves, sensitivity_plot
from convnext_deploy.reports.html.tables import epoch_table, label_table, layer_table, point_table, quality_table
from convnext_deploy.reports.label_table import describe_labels, labelled_rows, left_out
from convnext_deploy.reports.record import Layer, Report, StageRow

_NAMED = 6  # layers in a sentence


def accuracy(report: Report) -> dict[str, Any] | None:
    """Return accuracy against latency, and the distributions of the latter; None where nothing was timed."""
    points = find_points(report.rows)
    if not points:
        return None
    machine = report.environment.get("cpu", "this machine")
    caption = (
        f"{report.metric.title} on {report.validation_images:,} validation images, with its 95 % interval, against the "
        f"median latency of one image on {machine}."
    )
    front = pareto_front(points)
    if len(front) > 1:
        names = ", ".join(point.row.name for point in front)
        caption += f" No artifact is both faster and more accurate than one on the dotted front: {names}."
    for kind in dict.fromkeys(point.row.identity.quantized_type for point in points if point.row.is_simulated):
        shape = "squares" if kind == "INT8" else "triangles"
        caption += f" Hollow {shape}: {kind} simulated in FP32 by PyTorch, whose latency is not that of {kind}."
    spread = latency_plot(points)
    return {
        "plot": accuracy_plot(points),
        "caption": caption,
        "table": point_table(points),
        "spread": spread,
        "spread_table": None if spread is None else latency_table(points),
    }


def quality(report: Report) -> dict[str, Any] | None:
    """Return the table of calibration and the worst class, with a reliability diagram for each artifact."""
    table = quality_table(report.rows)
    if table is None:
        return None
    by_name = {row.name: row for row in report.rows}
    colors = {point.row.name: color_of(point, [""]) for point in find_points(report.rows)}
    plots: list[dict[str, Any]] = []
    same = _Groups(report)
    for row in report.rows:
        found = None if row.accuracy is None else row.accuracy.calibration
        if found is None or not found.bins:
            continue
        if same.is_repeated(row, found.bins):
            continue
        parent = by_name.get(row.provenance.baseline or "")
        before = None if parent is None or parent.accuracy is None else parent.accuracy.calibration
        plots.append(
            {
                "title": row.name,
                "plot": reliability_plot(found, before, colors.get(row.name, "fp32")),
                "table": reliability_table(found),
            }
        )
    return {"table": table, "plots": plots, "legend": reliability_legend(), "same": same.sentences("is as sure as")}


class _Groups:
    """Stages that show the same as an earlier one, which the page shows once."""

    def __init__(self, report: Report) -> None:
        self._first: dict[object, str] = {}
        self._same: dict[str, list[str]] = {}
        self._report = report

    def is_repeated(self, row: StageRow, shown: object) -> bool:
        """Whether an earlier stage showed this; the first one is remembered."""
        first = self._first.setdefault(shown, row.name)
        if first != row.name:
            self._same.setdefault(first, []).append(row.name)
        return first != row.name

    def sentences(self, verb: str) -> list[str]:
        """Say which stages are left out for that."""
        return [f"{name} {verb} {first}." for first, names in self._same.items() for name in names]


def layers(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the layers of quantized networks, with what each one costs where that was measured."""
    groups: dict[tuple[Layer, ...], list[str]] = {}  # stages whose layers compute in the same way are shown once
    for row in report.rows:
        if found := row.history.layers:
            groups.setdefault(found, []).append(row.name)
    for found, names in groups.items():
        yield {
            "title": ", ".join(names),
            "text": _describe_layers(found),
            "plot": sensitivity_plot(found),
            "table": layer_table(found),
        }


def _describe_layers(found: tuple[Layer, ...]) -> str:
    quantized = [layer for layer in found if layer.choice != "float"]
    share = sum(layer.weights for layer in quantized) / max(1, sum(layer.weights for layer in found))
    kind = "FP8" if any(layer.choice == "fp8" for layer in quantized) else "INT8"
    text = f"{len(quantized)} of {len(found)} layers compute in {kind}, with {100 * share:.1f} % of the weights."
    in_float = [layer.name for layer in found if layer.choice == "float"]
    if in_float:
        more = f" and {len(in_float) - _NAMED} more" if len(in_float) > _NAMED else ""
        text += f" In float: {', '.join(in_float[:_NAMED])}{more}."
    if not any(layer.kl is not None for layer in found):
        text += " What each one costs was not measured: no stage had to look for layers to keep in float."
    return text


def labels(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the figures of the labels of every artifact that was scored on multi-label data."""
    for row, found in labelled_rows(report):
        text = f"{describe_labels(found)}. AP: average precision. A drop is against the row's baseline."
        if more := left_out(found):
            text += f" {more} more labels are in report.json."
        yield {"title": row.name, "text": text, "table": label_table(found, report.class_names)}


def training(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the curves of every training, also of one that the source came from."""
    for row in report.rows:
        own, epochs = row.identity, row.history.epochs
        if not epochs:
            continue
        known = own.kind in STAGE_KINDS  # it was made here, judged by the validation images of this run
        what = f"{own.kind} of {own.variant}" if known else f"the training that {own.variant} came from"
        text = f"{what}, {len(epochs)} epochs"
        text += describe_best(epochs)
        text += f", {row.history.wall_s:,.0f} s." if row.history.wall_s else "."
        images = report.validation_images if known and report.validation_images else None
        drawn = curves(epochs, images)
        plots = [(title if title == "mAP" else title.capitalize(), plot) for title, plot in drawn.items()]
        yield {"title": row.name, "text": text, "plots": plots, "table": epoch_table(epochs)}
