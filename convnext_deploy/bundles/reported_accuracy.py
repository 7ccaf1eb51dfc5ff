"""Find the measured accuracy of a bundle's artifacts in the report of the run in whose folder they lie."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.contents import Contents
from convnext_deploy.errors import ArtifactError
from convnext_deploy.reports.record import REPORT_JSON, Report, StageRow, read_report


def find_measurement(artifact: Artifact) -> dict[str, Any] | None:
    """Return for JSON what the report of the artifact's run says of it; None if it lies in no run, or these bytes are not measured.

    `score` is a fraction, of what `scored` names, on `total` images of `data`; the drop is in percentage points, with its 95 %
    interval, against a `baseline` of that format and precision. Those of top-1 have its name beside. `warnings` say why the figures
    may mean nothing, `assumptions` what they rest on.
    """
    found = find_row(artifact)
    if found is None:
        return None
    report, row = found
    if row.accuracy is None:
        return None
    drop, change = row.accuracy.drop, row.accuracy.change
    baseline = next((each.identity for each in report.rows if each.name == row.provenance.baseline), None)
    compared = [each for each in report.rows if each.name in (row.name, row.provenance.baseline)]
    return {
        "data": PurePath(report.data).name,
        "total": row.accuracy.total,
        "scored": row.accuracy.metric,
        "score": row.accuracy.value,
        "passed": row.verdict.passed,
        "drop_pp": None if change is None else change.drop_pp,
        "drop_interval_pp": None if change is None else change.interval_pp,
        "top1": row.accuracy.top1,
        "top1_drop_pp": None if drop is None else drop.top1_drop_pp,
        "top1_drop_interval_pp": None if drop is None else drop.interval_pp,
        "baseline": None if baseline is None else f"{baseline.format} {baseline.precision}",
        "warnings": _without_place(
            [*report.leaks, *(text for each in compared for text in each.warnings)], report.data
        ),
        "assumptions": _without_place(report.assumptions, report.data),
        "runner": row.accuracy.runner,
        "cpu": report.environment.get("cpu"),
    }


def find_row(artifact: Artifact) -> tuple[Report, StageRow] | None:
    """Return the report of the run in which an artifact lies, and its row there; None if there is none of these bytes."""
    place = artifact.path.resolve()
    run = place.parents[1] if place.parent.name == "stages" else None
    if run is None or not (run / REPORT_JSON).is_file():
        return None
    try:
        report = read_report(run)
    except ArtifactError:
        return None
    row = next((row for row in report.rows if row.name == place.name), None)
    # a folder may have been made again after the report was written
    if row is None or row.identity.sha256 != artifact.sha256:
        return None
    # measured on other images than the bundle's model is shown
    return None if row.provenance.preprocess != artifact.preprocess else (report, row)


def _without_place(texts: Iterable[str], data: str) -> list[str]:
    """Return sentences, each once, with the name of the data in the place of where it lies on this machine."""
    return list(dict.fromkeys(text.replace(data, PurePath(data).name) for text in texts))


def find_doubts(contents: Contents) -> tuple[str, ...]:
    """Return why what was measured of a bundle's models may mean nothing, a line each."""
    found = [find_measurement(model.artifact) for model in contents.models]
    return tuple(dict.fromkeys(f"WARNING: {text}" for each in found if each is not None for text in each["warnings"]))
