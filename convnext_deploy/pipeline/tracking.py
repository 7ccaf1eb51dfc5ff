"""The figures of a run on their way to where other tools show them: epochs as they end, results as they enter the report."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from convnext_deploy.config.recipe import Recipe
from convnext_deploy.reports.record import REPORT_JSON, Report, StageRow
from convnext_deploy.reports.stage_table import verdict
from convnext_deploy.system.environment import installed_version
from convnext_deploy.system.progress import Progress

VIEWS = ("report.html", REPORT_JSON, "report.md", "model_card.md")


class Tracker(Protocol):
    """A tool that is told the figures of a run."""

    def write_epoch(self, stage: str, row: Mapping[str, float]) -> None:
        """Take the figures of an epoch of a stage that trains, `epoch` being the step."""

    def write_result(self, stage: str, place: int, figures: Mapping[str, float], verdict: str) -> None:
        """Take what was measured of an artifact, again where that has changed; `place`: of its row in the report, from 0."""


@dataclass
class Tracking:
    """All trackers of a run, which are told everything once, also what was taken from an earlier run."""

    trackers: tuple[Tracker, ...] = ()
    _epochs: dict[str, int] = field(default_factory=dict)
    _results: dict[str, tuple[int, dict[str, float], str]] = field(default_factory=dict)

    def of(self, stage: str) -> StageEpochs:
        """Return what takes the rows of a training's history."""
        return StageEpochs(self, stage)

    def write_epoch(self, stage: str, row: Mapping[str, float]) -> None:
        """Tell the figures of an epoch."""
        self._epochs[stage] = int(row["epoch"])
        for tracker in self.trackers:
            tracker.write_epoch(stage, row)

    def show(self, report: Report) -> None:
        """Tell what a report has that was not told yet."""
        if not self.trackers:
            return
        for place, row in enumerate(report.rows):
            if row.name not in self._epochs:  # of a training that was up to date
                for epoch in row.history.epochs:
                    self.write_epoch(row.name, {name: figure for name, figure in epoch.items() if figure is not None})
            result = (place, figures_of(row), verdict(row))
            if self._results.get(row.name) != result:
                self._results[row.name] = result
                for tracker in self.trackers:
                    tracker.write_result(row.name, *result)


@dataclass(frozen=True)
class StageEpochs:
    """A place for the rows of one training's history."""

    tracking: Tracking
    stage: str

    def write(self, row: Mapping[str, float]) -> None:
        """Tell the figures of an epoch."""
        self.tracking.write_epoch(self.stage, row)


def figures_of(row: StageRow) -> dict[str, float]:
    """Return what was measured of an artifact as numbers: shares from 0 to 1, `pp`, `ms` and `mb` as their names say."""
    found = row.figures()
    score = re.sub(r"\W", "", found["scored"]).lower() if found["score"] is not None else "score"  # top1, knntop1, map
    low, high = found["drop_interval_pp"] or (None, None)
    figures = {
        score: found["score"],
        "top5": found["top5"],
        "drop_pp": found["drop_pp"],
        "drop_low_pp": low,
        "drop_high_pp": high,
        "ece": found["ece"],
        "worst_class_drop_pp": found["worst_class_drop_pp"],
        "size_mb": found["size_bytes"] / 1e6,
        "latency_p50_ms": found["latency_p50_ms"],
        "speedup": found["speedup"],
        "passed": found["passed"],
    }
    return {name: float(figure) for name, figure in figures.items() if figure is not None}


def parameters_of(recipe: Recipe, told: Mapping[str, str]) -> dict[str, str]:
    """Return what decides the results of a run, flat: `STAGE.setting` for each stage, and what all of them share.

    `told`: what else is known of the run. What is empty is left out.
    """
    found = {
        "recipe": recipe.name,
        "seed": str(recipe.seed),
        "source": recipe.source or "",
        **told,
        "convnext_deploy": installed_version("convnext_deploy") or "",
    }
    for stage in recipe.stages:
        found[f"{stage.name}.kind"] = stage.config.kind
        found |= {f"{stage.name}.from.{role}": name for role, name in stage.inputs.items()}
        for record in (stage.config, stage.gate):
            found |= _flatten(dataclasses.asdict(record), f"{stage.name}.")
    return {name: text for name, text in found.items() if text != ""}


def _flatten(value: object, prefix: str) -> dict[str, str]:
    """Return the leaves of nested tables as text; settings that are None, and empty ones, were left open and are left out."""
    if isinstance(value, Mapping):
        found: dict[str, str] = {}
        for name, inner in value.items():
            found |= _flatten(inner, f"{prefix}{name}.")
        return found
    if value is None or value == () or value == []:
        return {}
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return {prefix.removesuffix("."): text}


@contextmanager
def open_trackers(
    recipe: Recipe, out: Path, told: Mapping[str, str], progress: Progress, *, tensorboard: bool, mlflow: bool
) -> Iterator[Tracking]:
    """Open the trackers that are asked for; they are closed as the block ends, however that is.

    Args:
        recipe: what is run.
        out: folder of the run.
        told: what else is known of it, see `parameters_of`.
        progress: where to say where a tracker writes, and what it could not.
        tensorboard: whether there are events in `out/tensorboard`.
        mlflow: whether there is a run of MLflow.

    Raises: BackendUnavailableError, OutputError: if a package is missing, or what it writes to cannot be reached.
    """
    trackers: list[Tracker] = []
    with ExitStack() as opened:
        if tensorboard:
            from convnext_deploy.training.tensorboard import TensorBoardTracker

            trackers.append(TensorBoardTracker(out / "tensorboard"))
        if mlflow:
            from convnext_deploy.training.mlflow_tracker import tracked_run

            views = [out / name for name in VIEWS]
            run = tracked_run(recipe.name, parameters_of(recipe, told), views, progress.say)
            trackers.append(opened.enter_context(run))
        yield Tracking(tuple(trackers))
