"""An artifact, and what it is compared with, measured on the same images: the report of `validate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import SOURCE, Gate
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.score import Score
from convnext_deploy.pipeline.write_report import write_report
from convnext_deploy.reports.record import Report, StageRow
from convnext_deploy.reports.rows import create_row, keep_flips
from convnext_deploy.reports.thumbnails import make_thumbnails
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.execution import Execution


def compare_artifacts(
    artifacts: Mapping[str, Artifact],
    gate: Gate,
    data: Data,
    execution: Execution,
    *,
    batch_size: int | None = None,
    out: Path | None = None,
    command: str | None = None,
) -> Report:
    """Measure one or two artifacts and compare the last with the first, image by image.

    Args:
        artifacts: by name; the first of two is called `baseline`.
        gate: what the last must reach.
        data: whose validation images are scored.
        execution: how; its seed is named in the report, nothing here is random.
        batch_size: images per step; None: as everywhere.
        out: folder for the report and the list of changed images; None: nothing is written.
        command: what was typed; None: the function was called.
    """
    from convnext_deploy.evaluation.measure import BATCH_SIZE, measure_artifact

    rows: list[StageRow] = []
    scores: dict[str, Score] = {}
    thumbnails: dict[str, str] = {}
    reference, judged = next(iter(artifacts)), list(artifacts)[-1]
    for name, artifact in artifacts.items():
        measured = measure_artifact(artifact, data, execution, name, batch_size or BATCH_SIZE)
        if measured.score is not None:
            scores[name] = measured.score
        own = gate if name == judged else Gate()
        rows.append(create_row(name, SOURCE, artifact, own, measured, reference, rows, scores, data))
        thumbnails |= make_thumbnails(data, rows[-1], thumbnails)
        if out is not None:
            keep_flips(out, rows[-1], scores, data)
    report = Report(
        recipe="validate",
        data=data.name,
        validation_images=len(data.validation),
        seed=execution.seed,
        environment=describe_environment(),
        rows=tuple(rows),
        complete=True,
        command=command or "convnext_deploy.validate(…)  # called from Python",
        class_names=data.class_names,
        thumbnails=thumbnails,
    )
    if out is not None:
        write_report(report, out)
    return report
