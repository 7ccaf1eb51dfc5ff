"""Find the measured accuracy of a bundle's artifacts in the report of the run in whose folder they lie."""

from pathlib import PurePath
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.reports.record import REPORT_JSON, read_report


def find_measurement(artifact: Artifact) -> dict[str, Any] | None:
    """Return for JSON what the report of the artifact's run says of it; None if it lies in no run, or these bytes are not measured.

    Top-1 is a fraction of `total` images of `data`; the drop is in percentage points, with its 95 % interval.
    """
    run = artifact.path.resolve().parents[1] if artifact.path.resolve().parent.name == "stages" else None
    if run is None or not (run / REPORT_JSON).is_file():
        return None
    try:
        report = read_report(run)
    except ArtifactError:
        return None
    row = next((row for row in report.rows if row.name == artifact.path.resolve().name), None)
    # a folder may have been made again after the report was written
    if row is None or row.identity.sha256 != artifact.sha256 or row.accuracy is None:
        return None
    if row.provenance.preprocess != artifact.preprocess:  # measured on other images than the bundle's model is shown
        return None
    drop = row.accuracy.drop
    return {
        "data": PurePath(report.data).name,
        "total": row.accuracy.total,
        "top1": row.accuracy.top1,
        "top1_drop_pp": None if drop is None else drop.top1_drop_pp,
        "top1_drop_interval_pp": None if drop is None else drop.interval_pp,
        "runner": row.accuracy.runner,
        "cpu": report.environment.get("cpu"),
    }
