"""From an artifact and its measurement to a row of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from convnext_deploy.artifact import Artifact
from convnext_deploy.recipe import BASELINE, SOURCE, Gate
from convnext_deploy.reporting.record import StageRow
from convnext_deploy.validation.gate import judge, measure_drop
from convnext_deploy.validation.measure import Measurement
from convnext_deploy.validation.score import Score


def create_row(
    name: str,
    kind: str,
    artifact: Artifact,
    gate: Gate,
    measured: Measurement,
    baseline: str | None,
    earlier: list[StageRow],
    scores: Mapping[str, Score],
) -> StageRow:
    """Put together what is known of an artifact.

    Args:
        name: of the stage, or `source`.
        kind: of the stage, or `source`.
        artifact: the stage's result.
        gate: what it must reach.
        measured: what its runner gave.
        baseline: name of the artifact that its drop is measured against; its own name for a baseline itself.
        earlier: rows of the run so far.
        scores: all scores of the run so far, the first being the run's source.
    """
    row = StageRow(
        name=name,
        kind=kind,
        artifact=str(artifact.path),
        variant=artifact.model.variant,
        format=artifact.format,
        precision=artifact.precision,
        size_bytes=artifact.size_bytes,
        wall_s=artifact.lineage[-1].wall_s if artifact.lineage and kind not in (SOURCE, BASELINE) else 0.0,
        baseline=None if baseline == name else baseline,
        not_run=measured.not_run,
        gate=dataclasses.asdict(gate),
    )
    if measured.score is None or measured.latency is None:
        return row
    score = measured.score
    drop = None
    if baseline is not None and baseline != name and baseline in scores:
        drop = measure_drop(score, scores[baseline])
        row = dataclasses.replace(
            row,
            agreement=drop.agreement,
            top1_drop_pp=drop.top1_drop_pp,
            top1_drop_interval_pp=drop.interval_pp,
        )
    first = next(iter(scores))
    verdict = judge(score, drop, gate)
    row = dataclasses.replace(
        row,
        runner=measured.runner,
        device=measured.device,
        correct=score.correct,
        total=score.total,
        top1=score.top1,
        top5=score.top5,
        source_drop_pp=None if first == name else measure_drop(score, scores[first]).top1_drop_pp,
        latency_p50_ms=measured.latency.p50_ms,
        latency_p90_ms=measured.latency.p90_ms,
        passed=verdict.passed,
        reasons=verdict.reasons,
    )
    return dataclasses.replace(row, notes=_notes(row, earlier))


def _notes(row: StageRow, earlier: list[StageRow]) -> tuple[str, ...]:
    """Say what a reader would otherwise take for granted: that INT8 is small and fast."""
    if row.precision != "int8":
        return ()
    if row.format == "torch":
        return (
            "INT8 is simulated in FP32 here, weights and scales stay trainable; size and latency are not those of INT8",
        )
    for other in earlier:
        same = (other.format, other.variant, other.runner) == (row.format, row.variant, row.runner)
        if same and other.precision == "fp32" and other.latency_p50_ms and row.latency_p50_ms:
            ratio = row.latency_p50_ms / other.latency_p50_ms
            if ratio > 0.95:
                return (
                    f"not faster than {other.name} on this machine ({ratio:.2f}× its time): {row.runner} has no fast CPU kernels "
                    "for the symmetric INT8 that TensorRT wants; judge its speed on the GPU",
                )
    return ()
