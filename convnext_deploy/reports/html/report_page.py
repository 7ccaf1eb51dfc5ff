"""Render the report as one HTML page."""

from collections.abc import Mapping
from typing import Any

from convnext_deploy.evaluation.timing.speedup import describe_speed
from convnext_deploy.reports.commands import again_commands, recipe_command
from convnext_deploy.reports.device_table import DEVICES_TITLE
from convnext_deploy.reports.html import error_sections, sections
from convnext_deploy.reports.html.device_section import devices
from convnext_deploy.reports.html.front_section import front
from convnext_deploy.reports.html.page import render_page
from convnext_deploy.reports.html.tables import Cell, speed_table, stage_table, step_table
from convnext_deploy.reports.html.tiles import create_tiles
from convnext_deploy.reports.label_table import LABELS_TITLE
from convnext_deploy.reports.phrases import explain
from convnext_deploy.reports.quality_table import TITLE
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import Report
from convnext_deploy.reports.stage_table import data_of, judged_on, outcome, remarks, summary, warnings

_CONTENTS = {
    "stages": ("stages", "Stages"),
    "accuracy": ("latency", "Accuracy and latency"),
    "front": ("front", "What to ship"),
    "speeds": ("speed", "INT8 against float"),
    "devices": ("devices", DEVICES_TITLE),
    "quality": ("quality", TITLE),
    "labels": ("labels", LABELS_TITLE),
    "classes": ("classes", "Classes"),
    "confusions": ("confusions", "Confusions"),
    "errors": ("errors", "Surest errors"),
    "flips": ("flips", "Flips"),
    "layers": ("layers", "Layers"),
    "steps": ("steps", "Fallback sequence"),
    "training": ("training", "Training"),
}


def render_html(report: Report) -> str:
    """Return the text of `report.html`."""
    found: dict[str, Any] = {
        "stages": stage_table(report.rows) if report.rows else None,
        "accuracy": sections.accuracy(report),
        "front": front(report),
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
        "devices": list(devices(report)),
        "quality": sections.quality(report),
        "classes": error_sections.classes(report),
        "confusions": list(error_sections.confusions(report)),
        "errors": list(error_sections.errors(report)),
        "flips": list(error_sections.flips(report)),
        "layers": list(sections.layers(report)),
        "steps": [
            {
                "title": row.name,
                "table": step_table(tried),
                "text": f"Judged {judged_on(tried)}. Selected {tried.chosen}: {tried.reason}.",
            }
            for row in report.rows
            if (tried := row.history.selection) is not None
        ],
        "training": list(sections.training(report)),
        "labels": list(sections.labels(report)),
    }
    contents = [place for key, place in _CONTENTS.items() if found[key]]
    return render_page(
        "report.html",
        title=f"{report.recipe}: report",
        report=report,
        subtitle=f"{data_of(report)}, seed {report.seed}",
        verdict=verdict_of(report),
        tiles=create_tiles(report),
        contents=[*contents, ("environment", "Environment and commands")],
        words=explain(report),
        metric=report.metric,
        remarks=remarks(report),
        warnings=warnings(report),
        environment=describe_environment_of(report),
        commands=list(again_commands(report)),
        recipe=write_recipe(report),
        recipe_command=recipe_command(report),
        pictures=error_sections.pictures(report),
        **found,
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
