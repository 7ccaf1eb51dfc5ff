"""What only computes with fewer bits gains nothing: if it does, the baseline is not evaluated as it was trained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import Gate
from convnext_deploy.evaluation.gains import doubt_gain, may_have_learned
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.paired import Drop, compare_predictions
from convnext_deploy.reports.record import StageRow
from convnext_deploy.reports.rows import Role, create_row

LABELS = tuple(index % 3 for index in range(30))


def score(right: int) -> Score:
    """Return the score of a network that is right for the first images."""
    guesses = tuple(label if index < right else (label + 1) % 3 for index, label in enumerate(LABELS))
    return Score(right, right, guesses, LABELS)


def drop(before: int, now: int) -> Drop:
    return compare_predictions(*map(np.array, (LABELS, score(before).predictions, score(now).predictions)))


def row_of(artifact: Artifact, before: int, now: int) -> StageRow:
    measured = Measurement(score(now), Latency(1, 2.0, 3.0), "torch", "cpu")
    role = Role("int8", "ptq", "float", Gate(max_top1_drop_pp=0.5))
    return create_row(role, artifact, measured, {"float": score(before), "int8": score(now)})


@pytest.mark.parametrize(
    ("before", "now", "doubted"), [(20, 30, True), (24, 30, True), (25, 30, False), (30, 20, False), (25, 25, False)]
)
def test_gain_is_doubted_beyond_chance_only(
    before: int, now: int, doubted: bool, small_artifacts: dict[str, Artifact]
) -> None:
    for name in ("ptq", "onnx-fp32", "engine"):
        assert (doubt_gain(drop(before, now), small_artifacts[name], "float") is not None) is doubted
    # a network that was trained on its own may be better than another
    assert doubt_gain(drop(before, now), small_artifacts["student"], "float") is None
    assert doubt_gain(None, small_artifacts["ptq"], "float") is None


def test_doubt_names_how_the_baseline_is_evaluated(small_artifacts: dict[str, Artifact]) -> None:
    assert doubt_gain(drop(20, 30), small_artifacts["ptq"], "student") == (
        "top-1 is 33.33 pp above that of student, beyond chance (exact McNemar p = 0.002); no export and no quantization makes a "
        "network better, so check that student was trained as it is evaluated here: 32 pixels, center crop 1, bicubic, its mean "
        "and std"
    )


@pytest.mark.parametrize(("name", "learned"), [("ptq", False), ("qat", True), ("onnx-int8", True), ("quantize", True)])
def test_training_explains_a_gain(name: str, learned: bool, small_artifacts: dict[str, Artifact]) -> None:
    artifact = small_artifacts[name]
    assert may_have_learned(artifact) is learned
    text = doubt_gain(drop(20, 30), artifact, "student")
    assert text is not None
    assert ("no quantization without training makes" in text) is learned


def test_quantization_without_training_does_not_explain_a_gain(small_artifacts: dict[str, Artifact]) -> None:
    made = small_artifacts["quantize"]
    record = dataclasses.replace(made.lineage[-1], config={**made.lineage[-1].config, "method": "ptq"})
    assert not may_have_learned(dataclasses.replace(made, lineage=(*made.lineage[:-1], record)))


def test_report_warns_of_a_gain_and_the_gate_proves_nothing(small_artifacts: dict[str, Artifact]) -> None:
    row = row_of(small_artifacts["ptq"], 20, 30)
    assert len(row.warnings) == 1
    assert (row.verdict.passed, row.verdict.proven) == (True, False)
    assert row.verdict.notes[-1] == "passed, which proves nothing: nothing explains that it is better than float"
    trained = row_of(small_artifacts["qat"], 20, 30)
    assert (len(trained.warnings), trained.verdict.proven) == (1, True)
    assert row_of(small_artifacts["ptq"], 30, 30).warnings == ()
