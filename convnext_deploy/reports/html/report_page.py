"""Render the report as one HTML page."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from convnext_deploy.config.recipe import CHANGE_LIMITS
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
    quality_table,
    speed_table,
    stage_table,
    step_table,
)
from convnext_deploy.reports.html.tiles import create_tiles
from convnext_deploy.reports.phrases import explain
from convnext_deploy.reports.quality_table import TITLE
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import Accuracy, Layer, Report
from convnext_deploy.reports.stage_table import data_of, judged_on, outcome, remarks, summary, warnings

_CONTENTS = {
    "stages": "Stages",
    "quality": TITLE,
    "accuracy": "Accuracy and latency",
    "speeds": "INT8 against float",
    "layers": "Layers",
    "steps": "Fallback sequence",
    "training": "Training",
    "classes": "Classes",
    "flips": "Flips",
}
_ANCHORS = {"accuracy": "latency", "speeds": "speed"}


def render_html(report: Report) -> str:
    """Return the text of `report.html`."""
    figures: dict[str, Any] = {}
    sections: dict[str, Any] = {
        "stages": stage_table(report.rows) if report.rows else None,
        "quality": quality_table(report.rows),
        "accuracy": _accuracy(report, figures),
        "speeds": [
            {
                "title": row.name,
                "lines": describe_speed(speed),
                "ship": row.speed.ship and f"Ship {speed.compared_with} instead: {row.speed.ship}",
                "table": speed_table(speed),
            }
            for row in report.rows
            if (speed := row.speed.against_float) is not None
        ],
        "layers": list(_layers(report, figures)),
        "steps": [
            {
                "title": row.name,
                "table": step_table(tried),
                "text": f"Judged {judged_on(tried)}. Selected {tried.chosen}: {tried.reason}.",
            }
            for row in report.rows
            if (tried := row.history.selection) is not None
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
        subtitle=f"{data_of(report)}, seed {report.seed}",
        verdict=verdict_of(report),
        tiles=create_tiles(report),
        contents=[*contents, ("environment", "Environment and commands")],
        unchanged=[
            row.name
            for row in report.rows
            if row.accuracy and row.accuracy.classes and not _count_changed(row.accuracy)
        ],
        words=explain(report),
        remarks=remarks(report),
        warnings=warnings(report),
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
    return Cell(text, outcome(report))


def describe_environment_of(report: Report) -> list[tuple[str, str]]:
    """Return the machine and versions, with names."""
    known = dict(report.environment)
    versions = known.pop("versions", {})
    runners = sorted({f"{row.accuracy.runner} on {row.accuracy.device}" for row in report.rows if row.accuracy})
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
        f"{report.metric.title} on {report.validation_images:,} validation images against the median latency of one image on "
        f"{machine}."
    )
    front = pareto_front(points)
    if len(front) > 1:
        names = ", ".join(point.row.name for point in front)
        caption += f" No artifact is both faster and more accurate than one on the dotted front: {names}."
    if any(family(point.row) == "INT8, simulated" for point in points):
        caption += " Open squares: INT8 simulated in FP32 by PyTorch, whose latency is not that of INT8."
    return {"caption": caption, "table": point_table(points)}


def _layers(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[Layer, ...], list[str]] = {}  # stages whose layers compute in the same way are shown once
    for row in report.rows:
        if layers := row.history.layers:
            groups.setdefault(layers, []).append(row.name)
    for place, (layers, names) in enumerate(groups.items()):
        plot = sensitivity_plot(layers)
        if plot is not None:
            figures[f"plot-layers-{place}"] = plot
        yield {
            "title": ", ".join(names),
            "text": _describe_layers(layers),
            "plot": None if plot is None else f"plot-layers-{place}",
            "table": layer_table(layers),
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
        text += " What each one costs was not measured: no stage had to look for layers to keep in float."
    return text


def _training(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for place, row in enumerate(report.rows):
        own, epochs = row.identity, row.history.epochs
        if not epochs:
            continue
        plots = []
        for title, figure in curves(epochs).items():
            name = f"plot-training-{place}-{title.replace(' ', '-')}"
            figures[name] = figure
            plots.append((name, title.capitalize()))
        scored = [
            (top1, -number)
            for number, epoch in enumerate(epochs, 1)
            if (top1 := epoch.get("validation_top1")) is not None
        ]
        known = own.kind in STAGE_KINDS
        what = f"{own.kind} of {own.variant}" if known else f"the training that {own.variant} came from"
        text = f"{what}, {len(epochs)} epochs"
        if scored:
            best, epoch = max(scored)  # of equal ones the first
            text += f", best top-1 {100 * best:.2f} % after epoch {-epoch}"
        text += f", {row.history.wall_s:,.0f} s." if row.history.wall_s else "."
        yield {"title": row.name, "text": text, "plots": plots, "table": epoch_table(epochs)}


def _classes(report: Report, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for place, row in enumerate(report.rows):
        changed = 0 if row.accuracy is None else _count_changed(row.accuracy)
        if row.accuracy is None or not changed:
            continue
        classes = row.accuracy.classes
        text = f"{changed:,} of {len(classes):,} classes changed against {row.provenance.baseline}."
        shown = shown_classes(classes)
        if len(shown) < len(classes):
            text += " Shown: the largest drops and gains; report.json has all."
        figures[f"plot-classes-{place}"] = class_plot(shown)
        yield {"title": row.name, "text": text, "plot": f"plot-classes-{place}", "table": class_table(shown)}


def _count_changed(accuracy: Accuracy) -> int:
    return sum(change.lost + change.gained > 0 for change in accuracy.classes)


def _flips(report: Report) -> Iterator[dict[str, Any]]:
    for row in report.rows:
        accuracy = row.accuracy
        if accuracy is None or not accuracy.flips:
            continue
        names = report.class_names or _names_by_label(accuracy)

        def name(label: int, names: tuple[str, ...] = names) -> str:
            return names[label] if 0 <= label < len(names) and names[label] else f"class {label}"

        images = []
        for flip in accuracy.flips:
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
        count = accuracy.flipped if accuracy.flipped is not None else len(images)
        text = f"{count:,} of {accuracy.total:,} images flipped"
        if (drop := accuracy.drop) is not None:
            text += f": {drop.lost:,} lost, {drop.gained:,} gained, the others wrong before and after"
        if count > len(images):
            text += f". The first {len(images)}, lost ones before others; flips/{row.name}.json lists all"
        yield {
            "title": row.name,
            "text": f"{text}. In bold the label, below it the guess of {row.provenance.baseline} → that of {row.name}.",
            "images": images,
        }


def _names_by_label(accuracy: Accuracy) -> tuple[str, ...]:
    """Return the class names as far as the classes that were compared know them, for reports that have no list of them."""
    names = {change.label: change.name for change in accuracy.classes}
    return tuple(names.get(label, "") for label in range(max(names, default=-1) + 1))


def _commands(report: Report) -> Iterator[str]:
    """Yield the commands that score each artifact again."""
    if report.data == "none":
        return
    places = {row.name: row.identity.artifact for row in report.rows}
    data = shlex.quote(report.data)
    for row in report.rows:
        if row.accuracy is None:
            continue
        compared, gate = row.provenance.baseline, row.provenance.gate
        baseline = f" --baseline {shlex.quote(places[compared])}" if compared in places else ""
        limits = [(flag, getattr(gate, name)) for name, flag in CHANGE_LIMITS.items()]
        asked = "".join(f" {flag} {limit:g}" for flag, limit in limits if baseline and limit is not None)
        yield f"convnext-deploy validate {shlex.quote(row.identity.artifact)}{baseline} --data {data}{asked}"
