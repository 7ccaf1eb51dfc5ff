"""Find the measured accuracy of a bundle's artifacts in the report of the run in whose folder they lie."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.contents import Contents
from convnext_deploy.errors import ArtifactError
from convnext_deploy.reports.record import REPORT_JSON, Report, StageRow, read_report


@dataclass(frozen=True)
class Reported:
    """What the report of the run in whose folder a model lies says: that folder, the report, and the model's row in it."""

    run: Path
    report: Report
    row: StageRow


def find_reported(contents: Contents) -> dict[str, Reported]:
    """Return what the reports of their runs say of a bundle's models, by name; nothing of one that lies in no run.

    However many models a run made, its report is read once.
    """
    reports: dict[Path, Report | None] = {}
    found = {}
    for model in contents.models:
        place = model.artifact.path.resolve()
        if place.parent.name != "stages":
            continue
        run = place.parents[1]
        if run not in reports:
            reports[run] = _read(run)
        report = reports[run]
        row = None if report is None else _row_of(model.artifact, report)
        if report is not None and row is not None:
            found[model.name] = Reported(run, report, row)
    return found


def _read(run: Path) -> Report | None:
    try:
        return read_report(run) if (run / REPORT_JSON).is_file() else None
    except ArtifactError:
        return None


def _row_of(artifact: Artifact, report: Report) -> StageRow | None:
    """Return an artifact's row, None if there is none of these bytes."""
    row = next((row for row in report.rows if row.name == artifact.path.resolve().name), None)
    # a folder may have been made again after the report was written
    if row is None or row.identity.sha256 != artifact.sha256:
        return None
    # measured on other images than the bundle's model is shown
    return None if row.provenance.preprocess != artifact.preprocess else row


def describe_measurement(found: Reported | None) -> dict[str, Any] | None:
    """Return for JSON what was measured of a model; None if nothing was.

    `score` is a fraction, of what `scored` names, on `total` images of `data`; the drop is in percentage points, with its 95 %
    interval, against a `baseline` of that format and precision. Those of top-1 have its name beside. `warnings` say why the figures
    may mean nothing, `assumptions` what they rest on.
    """
    if found is None or found.row.accuracy is None:
        return None
    report, row, accuracy = found.report, found.row, found.row.accuracy
    drop, change = accuracy.drop, accuracy.change
    baseline = next((each.identity for each in report.rows if each.name == row.provenance.baseline), None)
    compared = [each for each in report.rows if each.name in (row.name, row.provenance.baseline)]
    return {
        "data": PurePath(report.data).name,
        "total": accuracy.total,
        "scored": accuracy.metric,
        "score": accuracy.value,
        "passed": row.verdict.passed,
        "drop_pp": None if change is None else change.drop_pp,
        "drop_interval_pp": None if change is None else change.interval_pp,
        "top1": accuracy.top1,
        "top1_drop_pp": None if drop is None else drop.top1_drop_pp,
        "top1_drop_interval_pp": None if drop is None else drop.interval_pp,
        "baseline": None if baseline is None else f"{baseline.format} {baseline.precision}",
        "warnings": _without_place(
            [*report.leaks, *(text for each in compared for text in each.warnings)], report.data
        ),
        "assumptions": _without_place(report.assumptions, report.data),
        "runner": accuracy.runner,
        "cpu": report.environment.get("cpu"),
    }


def _without_place(texts: Iterable[str], data: str) -> list[str]:
    """Return sentences, each once, with the name of the data in the place of where it lies on this machine."""
    return list(dict.fromkeys(text.replace(data, PurePath(data).name) for text in texts))


def find_doubts(reported: Mapping[str, Reported]) -> tuple[str, ...]:
    """Return why what was measured of a bundle's models may mean nothing, a line each."""
    found = map(describe_measurement, reported.values())
    return tuple(dict.fromkeys(f"WARNING: {text}" for each in found if each is not None for text in each["warnings"]))
