"""The pages of `view` and the parts of them that change: rendered here, with every name escaped."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import convnext_deploy.reports.html
from convnext_deploy.reports.escaping import clean
from convnext_deploy.reports.record import Report
from convnext_deploy.reports.stage_table import cells, columns, outcome, summary
from convnext_deploy.viewer.library import MOST_FOLDERS, Epoch, Run, best_artifact

_TEMPLATES = Path(__file__).parent / "templates"
_REPORTS_STYLE = Path(convnext_deploy.reports.html.__file__).parent / "templates" / "page.css"
_STATES = {
    "running": "running",
    "recent": "running or just ended",
    "complete": "complete",
    "stopped": "stopped before its end",
    "unreadable": "cannot be read",
}
_MEASURES = {
    **{
        f"{title} %": tuple(
            f"{prefix}{images}_{name}" for images in ("validation", "selection") for prefix in ("", "ema_")
        )
        for title, name in (("top-1", "top1"), ("mAP", "map"))
    },
    "loss": ("train_loss", "validation_loss"),
}
_LONG = ("stage", "artifact", "verdict")


def style() -> str:
    """Return the style sheet of the reports, and what the pages here have besides."""
    return _REPORTS_STYLE.read_text("utf-8") + (_TEMPLATES / "view.css").read_text("utf-8")


def script() -> str:
    """Return what the pages do."""
    return (_TEMPLATES / "view.js").read_text("utf-8")


def render_list(runs: list[Run], root: Path, *, is_whole: bool = True) -> str:
    """Return the page with all runs; `is_whole`: see `Library`."""
    return _render("list.html", runs=runs, root=str(root), most=None if is_whole else MOST_FOLDERS)


def render_run(run: Run) -> str:
    """Return the page of a run."""
    return _render("run.html", run=run)


def render_error(title: str, text: str) -> str:
    """Return a page that says in a line what is wrong."""
    return _render("error.html", title=title, text=text)


def live_list(runs: list[Run]) -> str:
    """Return as JSON the rows of the table of runs, as HTML."""
    return json.dumps({"parts": {"runs": _macro("rows")(runs)}})


def live_run(run: Run) -> str:
    """Return as JSON what of a run's page changes: its parts as HTML, and the figures of its trainings."""
    trainings = run.trainings or {}
    parts = {"state": _macro("state")(run), "stages": _macro("stages")(run), "epochs": _macro("epochs")(run)}
    plots = [
        {
            "stage": clean(stage),
            "measure": measure,
            "epochs": _extent(epochs),
            "lines": _lines(epochs, names, 100 if "%" in measure else 1),
        }
        for stage, epochs in trainings.items()
        for measure, names in _MEASURES.items()
    ]
    return json.dumps({"parts": parts, "plots": [plot for plot in plots if plot["lines"]], "going": _is_going(run)})


def _extent(epochs: Iterable[Epoch]) -> list[float]:
    """Return the first and the last epoch of a training: its plots have one axis, though not every epoch is scored."""
    numbers = [epoch["epoch"] for epoch in epochs if "epoch" in epoch]
    return [min(numbers, default=1), max(numbers, default=1)]


def _lines(epochs: Any, names: tuple[str, ...], factor: float) -> list[dict[str, Any]]:
    lines = []
    for name in names:
        points = [[epoch["epoch"], factor * epoch[name]] for epoch in epochs if name in epoch and "epoch" in epoch]
        if points:
            lines.append({"name": _title(name), "points": points})
    return lines


def _title(name: str) -> str:
    words = name.replace("_top1", " top-1").replace("_map", " mAP").replace("ema_", "average: ").replace("_", " ")
    words = words.replace("selection", "set aside")
    return words.replace("train loss", "training loss")


def _is_going(run: Run) -> bool:
    return run.state in ("running", "recent")


def _best(report: Report | None) -> str:
    row = None if report is None else best_artifact(report)
    if row is None:
        return "–"
    accuracy, latency = row.accuracy, row.speed.latency
    score = "" if accuracy is None else f", {accuracy.metric} {100 * accuracy.value:.2f} %"
    if row.is_simulated:
        return f"{row.name}{score}, not exported yet"
    speed = "" if latency is None or latency.loaded is not None else f", {latency.p50_ms:.2f} ms"
    return f"{row.name}{score}{speed}, {row.identity.size_bytes / 1e6:.1f} MB"


def _stage_cells(report: Report) -> tuple[list[tuple[str, bool]], list[list[tuple[str, bool]]]]:
    """Return titles and rows of the table of stages, each text with whether it is a number."""
    titles = columns(report.rows)
    numbers = [title not in _LONG for title in titles]
    lines = [list(zip(cells(row, titles), numbers, strict=True)) for row in report.rows]
    return list(zip(titles, numbers, strict=True)), lines


def _epoch_cells(run: Run) -> list[dict[str, Any]]:
    """Return for each training its name, the titles of its figures and the last epochs, the newest first."""
    tables = []
    for stage, epochs in (run.trainings or {}).items():
        names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
        lines = [[f"{epoch[name]:.5g}" if name in epoch else "–" for name in names] for epoch in reversed(epochs)]
        tables.append({"stage": stage, "titles": [_title(name) for name in names], "lines": lines})
    return tables


def _ago(changed: float) -> str:
    seconds = max(0.0, time.time() - changed)
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def _last(run: Run) -> str:
    """Say how far the newest training of a run is."""
    found = [(stage, epochs[-1]) for stage, epochs in (run.trainings or {}).items() if epochs]
    if not found:
        return ""
    stage, epoch = found[-1]
    scored = (("top-1", "validation_top1"), ("mAP", "validation_map"))
    score = "".join(f", {title} {100 * epoch[name]:.2f} %" for title, name in scored if name in epoch)
    return f"{stage}: epoch {epoch.get('epoch', len(found)):g}{score}"


def _shown(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        address=lambda name: quote(name, safe="", errors="surrogateescape"),
        ago=_ago,
        best=_best,
        epoch_cells=_epoch_cells,
        is_going=_is_going,
        last=_last,
        outcome=outcome,
        stage_cells=_stage_cells,
        states=_STATES,
        summary=summary,
    )
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def _macro(name: str) -> Any:
    return getattr(_environment().get_template("parts.html").module, name)
