"""What was measured on the artifacts of a bundle, from the report of the run in whose folder they lie."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact, StageRecord
from convnext_deploy.errors import ArtifactError
from convnext_deploy.reports.record import REPORT_JSON, read_report


@dataclass(frozen=True)
class Measurement:
    """Top-1 as a fraction of `total` images of `data`; the drop against `baseline` in percentage points with its 95 % interval."""

    data: str
    total: int
    top1: float
    top1_drop_pp: float | None
    top1_drop_interval_pp: tuple[float, float] | None
    runner: str | None
    cpu: str | None


def find_measurement(artifact: Artifact) -> Measurement | None:
    """Return what the report of the artifact's run says of it; None if it lies in no run, or was not measured."""
    run = artifact.path.resolve().parents[1] if artifact.path.resolve().parent.name == "stages" else None
    if run is None or not (run / REPORT_JSON).is_file():
        return None
    try:
        report = read_report(run)
    except ArtifactError:
        return None
    row = next((row for row in report.rows if row.name == artifact.path.resolve().name), None)
    # a folder may have been made again after the report was written
    if row is None or row.identity.size_bytes != artifact.size_bytes or row.accuracy is None:
        return None
    found, drop, cpu = row.accuracy, row.accuracy.drop, report.environment.get("cpu")
    lost, interval = (None, None) if drop is None else (drop.top1_drop_pp, drop.interval_pp)
    return Measurement(PurePath(report.data).name, found.total, found.top1, lost, interval, found.runner, cpu)


def history(artifact: Artifact) -> list[dict[str, Any]]:
    """Return an artifact's history with the model of each stage that trained one, for people to read."""
    return [
        {**entry, "model": _model_name(record), "data": None if record.data == "none" else entry["data"]}
        for entry, record in zip(artifact.history(), artifact.lineage, strict=True)
    ]


def _model_name(record: StageRecord) -> str | None:
    model = record.config.get("model")
    return str(model["name"]) if isinstance(model, dict) and "name" in model else None


def as_record(measurement: Measurement | None) -> dict[str, Any] | None:
    """Return a measurement for JSON."""
    return None if measurement is None else dataclasses.asdict(measurement)
