"""From an artifact and its measurement to a row of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import EngineDetails, TorchDetails
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.recipe import BASELINE, SOURCE, Gate
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.flips import compare_classes, find_flips, image_namer, write_flips
from convnext_deploy.evaluation.gate import judge, measure_drop
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.evaluation.score import Score
from convnext_deploy.evaluation.timing.speedup import Speed, judge_speed
from convnext_deploy.metrics.paired import SIGNIFICANCE
from convnext_deploy.reports.provenance import describe_artifact
from convnext_deploy.reports.record import StageRow

LADDER = QuantizeConfig.kind
_MOST_FLIPS = 20  # images in the report; all are in the file beside it
_MOST_CLASSES = 3  # classes in a remark


def create_row(
    name: str,
    kind: str,
    artifact: Artifact,
    gate: Gate,
    measured: Measurement,
    baseline: str | None,
    earlier: list[StageRow],
    scores: Mapping[str, Score],
    data: Data | None = None,
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
        data: what was scored, for the names of classes and images; None: they go by number.
    """
    details = artifact.details
    selection = details.selection if kind == LADDER and isinstance(details, TorchDetails) else None
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
        rungs=() if selection is None else tuple(dataclasses.asdict(step) for step in selection.steps),
        chosen=None if selection is None else selection.chosen,
        reason=None if selection is None else selection.reason,
        notes=details.warnings if isinstance(details, EngineDetails) else (),
        **describe_artifact(artifact, kind),
    )
    if measured.score is None or measured.latency is None:
        return row
    score = measured.score
    drop = None
    if baseline is not None and baseline != name and baseline in scores:
        drop = measure_drop(score, scores[baseline])
        flips = find_flips(score, scores[baseline], image_namer(data))
        row = dataclasses.replace(
            row,
            agreement=drop.agreement,
            top1_drop_pp=drop.top1_drop_pp,
            top1_drop_interval_pp=drop.interval_pp,
            mcnemar_p=drop.p_value,
            lost=drop.lost,
            gained=drop.gained,
            flipped=len(flips),
            classes=compare_classes(score, scores[baseline], None if data is None else data.class_names),
            flips=flips[:_MOST_FLIPS],
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
        proven=verdict.proven,
        images_needed=verdict.images_needed,
        reasons=verdict.reasons,
    )
    return dataclasses.replace(
        row, notes=(*row.notes, *verdict.notes, *_changes(row), *_precision(row, artifact, earlier))
    )


def add_speed(row: StageRow, found: Speed | str, gate: Gate) -> StageRow:
    """Return the row of an INT8 artifact with the verdict on its speed, or with why that was not measured."""
    if isinstance(found, str):
        return dataclasses.replace(row, speed_not_measured=found, notes=(*row.notes, f"speed not measured: {found}"))
    verdict = judge_speed(found, gate.min_speedup)
    return dataclasses.replace(
        row,
        speed=found,
        ship=verdict.ship,
        passed=verdict.passed and row.passed is not False,
        proven=verdict.proven if row.proven is None else verdict.proven and row.proven,
        reasons=(*row.reasons, *verdict.reasons),
        notes=(*row.notes, *verdict.notes),
    )


def keep_flips(out: Path, row: StageRow, scores: Mapping[str, Score], data: Data | None) -> None:
    """Write all images whose first guess changed to `out/flips/NAME.json`; without a comparison, remove what lay there."""
    path = out / "flips" / f"{row.name}.json"
    if row.flipped is None or row.baseline is None or row.total is None:
        path.unlink(missing_ok=True)
        return
    flips = find_flips(scores[row.name], scores[row.baseline], image_namer(data))
    write_flips(path, row.name, row.baseline, row.total, flips, data)


def _changes(row: StageRow) -> Iterator[str]:
    """Say what changed beyond chance: in all, and in single classes."""
    if row.mcnemar_p is not None and row.mcnemar_p <= SIGNIFICANCE:
        yield f"{row.lost} images lost and {row.gained} gained: beyond chance (exact McNemar {_p(row.mcnemar_p)})"
    worse = [change for change in row.classes if change.p_value <= SIGNIFICANCE and change.top1_drop_pp > 0]
    if worse:
        worse.sort(key=lambda change: -change.top1_drop_pp)
        named = "; ".join(
            f"{change.name} {change.top1_drop_pp:+.1f} pp ({change.lost} lost, {change.gained} gained of {change.total}, "
            f"{_p(change.p_value)})"
            for change in worse[:_MOST_CLASSES]
        )
        more = f"; and {len(worse) - _MOST_CLASSES} more" if len(worse) > _MOST_CLASSES else ""
        yield f"classes that lose beyond chance, after Holm's correction: {named}{more}"


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= 1e-99 else "p < 1e-99"


def _precision(row: StageRow, artifact: Artifact, earlier: list[StageRow]) -> tuple[str, ...]:
    """Say what a reader would otherwise take for granted: that INT8 is small and fast."""
    if not row.precision.startswith("int8"):
        return ()
    if row.format == "torch":
        return (
            "INT8 is simulated in FP32 here, weights and scales stay trainable; size and latency are not those of INT8",
        )
    if not (artifact.target or "").startswith("tensorrt"):
        return ()  # it is measured on the runtime that it is for
    for other in earlier:
        same = (other.format, other.variant, other.runner) == (row.format, row.variant, row.runner)
        if same and other.precision == "fp32" and other.latency_p50_ms and row.latency_p50_ms:
            ratio = row.latency_p50_ms / other.latency_p50_ms
            if ratio > 0.95:
                kinds = "INT8 and FP16" if "fp16" in row.precision else "INT8"
                return (
                    f"not faster than {other.name} on this machine ({ratio:.2f}× its time): {row.runner} has no fast CPU kernels "
                    f"for the symmetric {kinds} that TensorRT wants; judge its speed on the GPU",
                )
    return ()
