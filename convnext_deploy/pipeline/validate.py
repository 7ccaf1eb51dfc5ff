"""An artifact, and what it is compared with, measured on the same images: the report of `validate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import Gate
from convnext_deploy.data.datasets import Data
from convnext_deploy.pipeline.ledger import open_ledger
from convnext_deploy.reports.record import Report
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

    command = command or "convnext_deploy.validate(…)  # called from Python"
    ledger = open_ledger("validate", data, out, seed=execution.seed, command=command)
    reference, judged = next(iter(artifacts)), list(artifacts)[-1]
    for name, artifact in artifacts.items():
        measured = measure_artifact(artifact, data, execution, name, batch_size or BATCH_SIZE)
        ledger.record(name, artifact, measured, gate if name == judged else None, baseline=reference)
    ledger.change(complete=True)
    return ledger.report
