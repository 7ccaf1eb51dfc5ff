"""Create the row of the report for an artifact, from what its manifest tells and what was measured on it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import EngineDetails
from convnext_deploy.artifacts.preprocessing import describe_assumed
from convnext_deploy.config.recipe import BASELINE, SOURCE, Gate
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.calibration import compare_calibration
from convnext_deploy.evaluation.class_numbers import describe_permutation, find_permutation
from convnext_deploy.evaluation.flips import compare_classes, find_flips, image_namer, write_flips
from convnext_deploy.evaluation.gains import doubt_gain, may_have_learned
from convnext_deploy.evaluation.gate import judge, measure_drop, withhold
from convnext_deploy.evaluation.guessing import doubt_score, find_guessing
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.evaluation.mistakes import find_confusions, find_sure_errors, score_classes
from convnext_deploy.evaluation.score import Score
from convnext_deploy.evaluation.timing.speedup import Speed, judge_speed
from convnext_deploy.metrics.paired import SIGNIFICANCE
from convnext_deploy.metrics.worst_class import find_worst_class
from convnext_deploy.reports.feature_rows import describe_load, feature_quality
from convnext_deploy.reports.label_rows import doubts_of_labels, guessing_names, label_accuracy, remarks_on_labels
from convnext_deploy.reports.provenance import read_history, read_provenance
from convnext_deploy.reports.record import Accuracy, Identity, MeasuredSpeed, StageRow, find_twin

_MOST_FLIPS = 20  # images in the report; all are in the file beside it
_MOST_ERRORS = 8  # of which it is most sure
_MOST_CLASSES = 3  # classes in a remark


@dataclass(frozen=True)
class Role:
    """What an artifact is in its run.

    `name` and `kind` are those of the stage that made it, or `source` or `baseline`. Its drop is measured against `baseline`, which
    is its own name for a baseline itself, and must keep within `gate`. `inputs`: names of the artifacts that it was made from, by
    role. `for_comparison`: a float baseline that no stage of the recipe made. `is_kept`: whether what was measured is, until
    --measure-again; `validate` measures each time.
    """

    name: str
    kind: str
    baseline: str | None
    gate: Gate = field(default_factory=Gate)
    inputs: Mapping[str, str] = field(default_factory=dict)
    for_comparison: bool = False
    is_kept: bool = True


def create_row(
    role: Role,
    artifact: Artifact,
    measured: Measurement,
    scores: Mapping[str, Score],
    earlier: Sequence[StageRow] = (),
    data: Data | None = None,
) -> StageRow:
    """Put together what is known of an artifact.

    Args:
        role: what it is in the run.
        artifact: as read from its folder.
        measured: what its runner gave.
        scores: all scores of the run so far, its own among them; the first is that of the run's source, or of its FP32 ancestor.
        earlier: rows of the run so far.
        data: what was scored, for the names of classes and images; None: they go by number.
    """
    row = StageRow(
        Identity(
            name=role.name,
            kind=role.kind,
            artifact=str(artifact.place),
            variant=artifact.model.name,
            format=artifact.format,
            precision=artifact.precision,
            size_bytes=artifact.size_bytes,
            file=artifact.files[0].name if artifact.files else None,
            num_classes=artifact.model.num_classes,
            sha256=artifact.sha256,
            multi_label=artifact.model.multi_label,
        ),
        not_run=measured.not_run,
        history=read_history(artifact, role.kind),
        provenance=dataclasses.replace(
            read_provenance(artifact, role.kind),
            baseline=None if role.baseline == role.name else role.baseline,
            gate=role.gate,
            inputs=role.inputs,
            for_comparison=role.for_comparison,
        ),
        notes=(*_assumptions(role, artifact), *_engine_warnings(artifact)),
    )
    if measured.features is not None:
        features = feature_quality(artifact, measured)
        row = dataclasses.replace(
            row, features=features, notes=(*row.notes, *features.describe(row.provenance.baseline))
        )
    if measured.latency is None:
        return row
    loaded = describe_load(measured.latency, is_kept=role.is_kept)
    row = dataclasses.replace(row, speed=MeasuredSpeed(measured.latency), notes=(*row.notes, *loaded))
    assert measured.score is not None  # as of all that was run
    if measured.score.answers is not None:
        return _complete_labels(row, role, artifact, measured, scores, data, earlier)
    accuracy = _compare(row, measured, scores, data)
    renumbered = None if data is None else describe_permutation(measured.score, artifact, data)
    gain = doubt_gain(accuracy.drop, artifact, role.baseline or "")
    doubts = (renumbered, doubt_score(measured.score, artifact, data), gain)
    row = dataclasses.replace(
        row,
        accuracy=accuracy,
        verdict=judge(
            measured.score,
            accuracy.drop,
            role.gate,
            accuracy.calibration,
            accuracy.worst_class,
            None if data is None else data.class_names,
        ),
        warnings=tuple(doubt for doubt in doubts if doubt is not None),
    )
    reasons = []
    if gain is not None and not may_have_learned(artifact):
        reasons.append(f"nothing explains that it is better than {role.baseline}")
    brought = next((each for each in earlier if each.name == role.baseline), None)
    if brought is not None and brought.warnings:
        reasons.append(f"{role.baseline} seems not to work as it is evaluated here")
    suspect = [name for name in (role.name, role.baseline) if name and _guesses(scores.get(name), artifact)]
    reasons += [f"{name} is no better than guessing" for name in suspect]
    if reasons and role.gate.judges_change:
        row = dataclasses.replace(row, verdict=withhold(row.verdict, reasons[-1]))
    notes = (*row.notes, *_changes(accuracy), *_precision(row, artifact, earlier))
    return dataclasses.replace(row, notes=notes)


def _complete_labels(
    row: StageRow,
    role: Role,
    artifact: Artifact,
    measured: Measurement,
    scores: Mapping[str, Score],
    data: Data | None,
    earlier: Sequence[StageRow],
) -> StageRow:
    """Return the row of an artifact that was scored on multi-label data."""
    score, names = measured.score, None if data is None else data.class_names
    assert score is not None  # it was scored
    first = SOURCE if SOURCE in scores else next(iter(scores))
    accuracy = label_accuracy(
        score,
        measured.runner or "",
        measured.device or "",
        scores.get(row.provenance.baseline or ""),
        None if first == row.name else scores[first],
    )
    verdict = judge(score, None, role.gate, class_names=names, labels=accuracy.multi_label)
    if (suspect := guessing_names(scores, (role.name, role.baseline))) and role.gate.judges_change:
        verdict = withhold(verdict, f"{suspect[-1]} is no better than guessing")
    warnings = doubts_of_labels(accuracy, artifact, role.baseline or "")
    row = dataclasses.replace(
        row, accuracy=accuracy, verdict=verdict, speed=MeasuredSpeed(measured.latency), warnings=warnings
    )
    return dataclasses.replace(
        row, notes=(*row.notes, *remarks_on_labels(accuracy, names), *_precision(row, artifact, earlier))
    )


def _engine_warnings(artifact: Artifact) -> tuple[str, ...]:
    return artifact.details.warnings if isinstance(artifact.details, EngineDetails) else ()


def _assumptions(role: Role, artifact: Artifact) -> Iterator[str]:
    """Say what nobody told of how an artifact that was brought along is evaluated; what is made of it is evaluated alike."""
    assumed = describe_assumed(artifact.preprocess) if role.kind in (SOURCE, BASELINE) else None
    if assumed is not None:
        yield f"evaluated with what is only assumed: {assumed}"


def _guesses(score: Score | None, artifact: Artifact) -> bool:
    classes = artifact.model.num_classes
    if score is None or not classes:
        return score is not None and bool(find_guessing(score, len({*score.labels})))
    return bool(find_guessing(score, classes) or find_permutation(score, classes))


def _compare(row: StageRow, measured: Measurement, scores: Mapping[str, Score], data: Data | None) -> Accuracy:
    """Return the score of an artifact, compared with its baseline, where that was scored, and with the run's source."""
    score, first = measured.score, SOURCE if SOURCE in scores else next(iter(scores))
    assert score is not None
    baseline = scores.get(row.provenance.baseline or "")
    accuracy = Accuracy(
        runner=measured.runner or "",
        device=measured.device or "",
        correct=score.correct,
        total=score.total,
        top1=score.top1,
        top5=score.top5,
        source_drop_pp=None
        if first == row.name or scores[first].metric != score.metric
        else measure_drop(score, scores[first]).top1_drop_pp,
        calibration=compare_calibration(score, baseline),
        per_class=score_classes(score),
        confusions=find_confusions(score, baseline),
        errors=find_sure_errors(score, image_namer(data), _MOST_ERRORS),
        metric=score.metric,
    )
    if baseline is None:
        return accuracy
    flips = find_flips(score, baseline, image_namer(data))
    return dataclasses.replace(
        accuracy,
        drop=measure_drop(score, baseline),
        worst_class=find_worst_class(*map(np.array, (score.labels, baseline.predictions, score.predictions))),
        flipped=len(flips),
        classes=compare_classes(score, baseline, None if data is None else data.class_names),
        flips=flips[:_MOST_FLIPS],
    )


def add_speed(row: StageRow, found: Speed | str) -> StageRow:
    """Return the row of an INT8 artifact with the verdict on its speed, or with why that was not measured."""
    if isinstance(found, str):
        speed = dataclasses.replace(row.speed, not_measured=found)
        return dataclasses.replace(row, speed=speed, notes=(*row.notes, f"speed not measured: {found}"))
    own, on_speed = row.verdict, judge_speed(found, row.provenance.gate.min_speedup)
    verdict = dataclasses.replace(
        own,
        passed=on_speed.passed and own.passed is not False,
        proven=on_speed.proven and own.proven is not False,
        reasons=(*own.reasons, *on_speed.reasons),
        notes=(*own.notes, *on_speed.notes),
    )
    speed = dataclasses.replace(row.speed, against_float=found, ship=None if on_speed.passed else found.path)
    return dataclasses.replace(row, verdict=verdict, speed=speed)


def keep_flips(out: Path, row: StageRow, scores: Mapping[str, Score], data: Data | None) -> None:
    """Write all images whose first guess changed to `out/flips/NAME.json`; without a comparison, remove what lay there."""
    path, baseline = out / "flips" / f"{row.name}.json", row.provenance.baseline
    if row.accuracy is None or row.accuracy.drop is None or baseline is None:
        path.unlink(missing_ok=True)
        return
    flips = find_flips(scores[row.name], scores[baseline], image_namer(data))
    write_flips(path, row.name, baseline, row.accuracy.total, flips, data)


def _changes(accuracy: Accuracy) -> Iterator[str]:
    """Say what changed beyond chance: in all, and in single classes."""
    drop = accuracy.drop
    if drop is not None and drop.p_value <= SIGNIFICANCE:
        yield f"{drop.lost} images lost and {drop.gained} gained: beyond chance (exact McNemar {_p(drop.p_value)})"
    worse = [change for change in accuracy.classes if change.p_value <= SIGNIFICANCE and change.top1_drop_pp > 0]
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


def _precision(row: StageRow, artifact: Artifact, earlier: Sequence[StageRow]) -> tuple[str, ...]:
    """Say what a reader would otherwise take for granted: that INT8 and FP8 are small and fast."""
    own, latency = row.identity, row.speed.latency
    if (kind := own.quantized_type) is None or latency is None or row.accuracy is None:
        return ()
    if own.format == "torch":
        return (
            f"{kind} is simulated in FP32 here, weights and scales stay trainable; size and latency are not those of {kind}",
        )
    if not (artifact.target or "").startswith("tensorrt"):
        return ()  # it is measured on the runtime that it is for
    twin = find_twin(row, earlier)
    ratio = latency.p50_ms / twin.speed.latency.p50_ms if twin is not None and twin.speed.latency is not None else 0.0
    if twin is None or ratio <= 0.95:
        return ()
    kinds = f"{kind} and FP16" if "fp16" in own.precision else kind
    return (
        f"not faster than {twin.name} on this machine ({ratio:.2f}× its time): {row.accuracy.runner} has no fast CPU kernels "
        f"for {'the symmetric ' if kind == 'INT8' else ''}{kinds} that TensorRT wants; judge its speed on the GPU",
    )
