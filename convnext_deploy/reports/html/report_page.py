"""The report as one HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from convnext_deploy.config.stages import STAGE_KINDS
from convnext_deploy.evaluation.timing.speedup import describe_speed
from convnext_deploy.reports.html.accuracy_plot import accuracy_plot, family, find_points, pareto_front
from convnext_deploy.reports.html.page import render_page
from convnext_deploy.reports.html.plots import class_plot, curves, sensitivity_plot, shown_classes
from convnext_deploy.reports.html.tables import (
    Cell,
    class_table,
    epoch_table,
    layer_table,
    point_table,
    rung_table,
    speed_table,
    stage_table,
)
from convnext_deploy.reports.html.tiles import create_tiles
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import Layer, Report, StageRow
from convnext_deploy.reports.stage_table import remarks, summary

_CONTENTS = {
    "stages": "Stages",
    "accuracy": "Accuracy and latency",
    "speeds": "INT8 against float",
    "layers": "Layers",
    "ladders": "Ladder",
    "training": "Training",
    "classes": "Classes",
    "flips": "Flips",
}
_ANCHORS = {"accuracy": "latency", "speeds": "speed", "ladders": "ladder"}


def render_html(report: Report) -> str:
    """Return the text of `report.html`."""
    figures: dict[str, Any] = {}
    sections: dict[str, Any] = {
        "stages": stage_table(report.rows) if report.rows else None,
        "accuracy": _accuracy(report, figures),
        "speeds": [
            {
                "title": row.name,
                "lines": describe_speed(row.speed),
                "ship": None if row.ship is None else f"Ship {row.speed.compared_with} instead: {row.ship}",
                "table": speed_table(row.speed),
            }
            for row in report.rows
            if row.speed is not None
        ],
        "layers": list(_layers(report, figures)),
        "ladders": [
            {"title": row.name, "table": rung_table(row), "text": f"Taken: {row.chosen}; {row.reason}."}
            for row in report.rows
            if row.rungs
        ],
        "training": list(_training(report, figures)),
        "classes": list(_classes(report, figures)),
        "flips": list(_flips(report)),
    }
    contents = [(_ANCHORS.get(key, key), name) for key, name in _CONTENTS.items() if sections[key]]
    return render_page(
        "report.html",
        figures,
        title=f"{report.recipe}: report",
        report=report,
        subtitle=f"{report.data}, {report.validation_images:,} validation images, seed {report.seed}",
        verdict=verdict_of(report),
        tiles=create_tiles(report),
        contents=[*contents, ("environment", "Environment and commands")],
        unchanged=[row.name for row in report.rows if row.classes and not _count_changed(row)],
        any_unproven=any(row.passed and row.proven is False for row in report.rows),
        remarks=remarks(report),
        environment=describe_environment_of(report),
        commands=list(_commands(report)),
        recipe=write_recipe(report),
        **sections,
    )


def verdict_of(report: Report) -> Cell:
    """Return the outcome of a run in a sentence."""
    text = summary(report)
    text = f"{text[0].upper()}{text[1:]}."
    if not report.complete:
        return Cell(f"The run is not complete. So far: {summary(report)}.", "failed" if not report.passed else "warned")
    if not report.passed:
        return Cell(text, "failed")
    return Cell(text, "passed" if any(row.passed for row in report.rows) else "plain")


def describe_environment_of(report: Report) -> list[tuple[str, str]]:
    """Return the machine and versions, with names."""
    known = dict(report.environment)
    versions = known.pop("versions", {})
    runners = sorted({f"{row.runner} on {row.device}" for row in report.rows if row.runner})
    names = {"cpu": "processor", "cores": "cores used"}
    found = [(names.get(key, key), str(value)) for key, value in known.items()]
    if runners:
        found.append(("runners", ", ".join(runners)))
    if isinstance(versions, Mapping):
        found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return found


def _accuracy(report: Report, figures: dict[str, Any]) -> dict[str, Any] | None:
    points = find_points(report.rows)
    if not points:
        return None
    figures["plot-accuracy"] = accuracy_plot(points)
    machine = report.environment.get("cpu", "this machine")
    caption = (
        f"Top-1 on {report.validation_images:,} validation images against the median latency of one image on {machine}."
    )
    front = pareto_front(points)
    if len(front) > 1:
        caption += " On the dotted front no artifact is both faster and more accurate."
    if any(family(point.row) == "INT8, simulated" for point in points):
        caption += " Open squares: INT8 simulated in FP32 by PyTorch, whose latency is not that of INT8."
    return {"caption": caption, "table": point_table(points)}


@dataclass
class _SameLayers:
    """Stages whose layers compute in the same way; they are shown once."""

    layers: tuple[Layer, ...]
    names: list[str] = field(default_factory=list)


def _layers(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[Layer, ...], _SameLayers] = {}
    for row in report.rows:
        if row.layers:
            groups.setdefault(row.layers, _SameLayers(row.layers)).names.append(row.name)
    for place, group in enumerate(groups.values()):
        plot = sensitivity_plot(group.layers)
        if plot is not None:
            figures[f"plot-layers-{place}"] = plot
        yield {
            "title": ", ".join(group.names),
            "text": _describe_layers(group.layers),
            "plot": None if plot is None else f"plot-layers-{place}",
            "table": layer_table(group.layers),
        }


def _describe_layers(layers: tuple[Layer, ...]) -> str:
    quantized = [layer for layer in layers if layer.choice != "float"]
    share = sum(layer.weights for layer in quantized) / max(1, sum(layer.weights for layer in layers))
    text = f"{len(quantized)} of {len(layers)} layers compute in INT8, with {100 * share:.1f} % of the weights."
    in_float = [layer.name for layer in layers if layer.choice == "float"]
    if in_float:
        more = f" and {len(in_float) - 6} more" if len(in_float) > 6 else ""
        text += f" In float: {', '.join(in_float[:6])}{more}."
    if not any(layer.kl is not None for layer in layers):
        text += " What each one costs was not measured: no ladder had to look for layers to keep in float."
    return text


def _training(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for place, row in enumerate(report.rows):
        if not row.history:
            continue
        plots = []
        for title, figure in curves(row.history).items():
            name = f"plot-training-{place}-{title.replace(' ', '-')}"
            figures[name] = figure
            plots.append((name, title.capitalize()))
        scored = [
            (top1, -number)
            for number, epoch in enumerate(row.history, 1)
            if (top1 := epoch.get("validation_top1")) is not None
        ]
        what = (
            f"{row.kind} of {row.variant}" if row.kind in STAGE_KINDS else f"the training that {row.variant} came from"
        )
        text = f"{what}, {len(row.history)} epochs"
        if scored:
            best, epoch = max(scored)  # of equal ones the first
            text += f", best top-1 {100 * best:.2f} % after epoch {-epoch}"
        text += f", {row.wall_s:,.0f} s." if row.wall_s else "."
        yield {"title": row.name, "text": text, "plots": plots, "table": epoch_table(row)}


def _classes(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for place, row in enumerate(report.rows):
        if not row.classes:
            continue
        changed = _count_changed(row)
        text = f"{changed:,} of {len(row.classes):,} classes changed against {row.baseline}."
        if not changed:
            continue
        shown = shown_classes(row.classes)
        if len(shown) < len(row.classes):
            text += " Shown: the largest drops and gains; report.json has all."
        figures[f"plot-classes-{place}"] = class_plot(shown)
        yield {"title": row.name, "text": text, "plot": f"plot-classes-{place}", "table": class_table(shown)}


def _count_changed(row: StageRow) -> int:
    return sum(change.lost + change.gained > 0 for change in row.classes)


def _flips(report: Report) -> Iterator[dict[str, Any]]:
    for row in report.rows:
        if not row.flips:
            continue
        names = report.class_names or _names_by_label(row)

        def name(label: int, names: tuple[str, ...] = names) -> str:
            return names[label] if 0 <= label < len(names) and names[label] else f"class {label}"

        images = []
        for flip in row.flips:
            picture = report.thumbnails.get(str(flip.index), "")
            if not picture.startswith("data:image/"):
                picture = ""
            images.append(
                {
                    "picture": picture,
                    "is_tiny": picture.startswith("data:image/png"),
                    "name": flip.image or f"image {flip.index}",
                    "short": PurePosixPath(flip.image).name if flip.image else f"#{flip.index}",
                    "label": name(flip.label),
                    "before": name(flip.baseline_prediction),
                    "after": name(flip.prediction),
                    "change": flip.change,
                }
            )
        count = row.flipped if row.flipped is not None else len(images)
        text = f"{count:,} of {row.total or report.validation_images:,} images flipped"
        if row.lost is not None and row.gained is not None:
            text += f": {row.lost:,} lost, {row.gained:,} gained, the others wrong before and after"
        if count > len(images):
            text += f". The first {len(images)}, lost ones before others; flips/{row.name}.json lists all"
        yield {
            "title": row.name,
            "text": f"{text}. In bold the label, below it the guess of {row.baseline} → that of {row.name}.",
            "images": images,
        }


def _names_by_label(row: StageRow) -> tuple[str, ...]:
    """Return the class names as far as the row's classes know them, for reports that have no list of them."""
    names = {change.label: change.name for change in row.classes}
    return tuple(names.get(label, "") for label in range(max(names, default=-1) + 1))


def _commands(report: Report) -> Iterator[str]:
    """Yield the commands that score each artifact again."""
    if report.data == "none":
        return
    places = {row.name: row.artifact for row in report.rows}
    data = shlex.quote(report.data)
    for row in report.rows:
        if row.top1 is None:
            continue
        baseline = f" --baseline {shlex.quote(places[row.baseline])}" if row.baseline in places else ""
        allowed = row.gate.get("max_top1_drop_pp")
        gate = f" --max-drop {allowed:g}" if baseline and isinstance(allowed, int | float) else ""
        yield f"convnext-deploy validate {shlex.quote(row.artifact)}{baseline} --data {data}{gate}"
