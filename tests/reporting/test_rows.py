"""From an artifact and its measurement to a row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convnext_deploy.artifact import Artifact
from convnext_deploy.recipe import BASELINE, SOURCE, Gate
from convnext_deploy.reporting.record import StageRow
from convnext_deploy.reporting.rows import create_row
from convnext_deploy.validation.latency import Latency
from convnext_deploy.validation.measure import Measurement
from convnext_deploy.validation.score import Score

LABELS = (0, 0, 1, 1, 2, 2, 0, 1)
GOOD = Score(7, 8, (0, 0, 1, 1, 2, 2, 0, 0), LABELS)
WORSE = Score(5, 8, (0, 0, 1, 1, 2, 1, 1, 0), LABELS)


def measurement(score: Score | None, p50_ms: float = 2.0, runner: str = "torch") -> Measurement:
    if score is None:
        return Measurement(not_run="not run: no GPU")
    return Measurement(score, Latency(1, p50_ms, 2 * p50_ms), runner, "cpu")


@pytest.fixture
def student(small_artifacts: dict[str, Artifact]) -> Artifact:
    return small_artifacts["student"]


def test_create_row_of_a_baseline_has_no_drop(student: Artifact) -> None:
    row = create_row("a", "train", student, Gate(max_top1_drop_pp=0.0), measurement(GOOD), "a", [], {"a": GOOD})
    assert (row.correct, row.total, row.top1, row.top5) == (7, 8, 0.875, 1.0)
    assert (row.baseline, row.top1_drop_pp, row.agreement, row.source_drop_pp, row.passed) == (None,) * 5
    assert (row.latency_p50_ms, row.latency_p90_ms, row.runner, row.device) == (2.0, 4.0, "torch", "cpu")
    assert (row.artifact, row.variant, row.size_bytes) == (str(student.path), "convnext_atto", student.size_bytes)
    assert row.wall_s == student.lineage[-1].wall_s > 0


@pytest.mark.parametrize("kind", [SOURCE, BASELINE])
def test_create_row_of_a_brought_artifact_took_no_time(student: Artifact, kind: str) -> None:
    assert create_row(kind, kind, student, Gate(), measurement(GOOD), kind, [], {kind: GOOD}).wall_s == 0.0


@pytest.mark.parametrize(
    ("gate", "passed", "reasons"),
    [
        (Gate(), None, 0),
        (Gate(max_top1_drop_pp=25.0), True, 0),
        (Gate(max_top1_drop_pp=24.9), False, 1),
        (Gate(max_top1_drop_pp=0.0, min_top1=0.7), False, 2),
        (Gate(min_top1=0.625), True, 0),
    ],
)
def test_create_row_compares_image_by_image_and_judges(
    small_artifacts: dict[str, Artifact], gate: Gate, passed: bool | None, reasons: int
) -> None:
    scores = {"a": GOOD, "ptq": WORSE}
    row = create_row("ptq", "ptq", small_artifacts["ptq"], gate, measurement(WORSE), "a", [], scores)
    assert (row.baseline, row.top1_drop_pp, row.source_drop_pp, row.agreement) == ("a", 25.0, 25.0, 0.75)
    assert row.top1_drop_interval_pp is not None
    assert row.top1_drop_interval_pp[0] < 25.0 < row.top1_drop_interval_pp[1]
    assert (row.passed, len(row.reasons)) == (passed, reasons)
    assert row.gate == dataclasses.asdict(gate)


def test_create_row_compares_with_the_first_row_besides_the_baseline(small_artifacts: dict[str, Artifact]) -> None:
    scores = {"teacher": GOOD, "student": WORSE, "ptq": WORSE}
    row = create_row("ptq", "ptq", small_artifacts["ptq"], Gate(), measurement(WORSE), "student", [], scores)
    assert (row.top1_drop_pp, row.source_drop_pp) == (0.0, 25.0)


def test_create_row_says_why_an_artifact_was_not_run(small_artifacts: dict[str, Artifact]) -> None:
    gate = Gate(max_top1_drop_pp=0.0)
    row = create_row("e", "tensorrt", small_artifacts["engine"], gate, measurement(None), "a", [], {"a": GOOD})
    assert (row.not_run, row.top1, row.passed, row.runner) == ("not run: no GPU", None, None, None)
    assert row.baseline == "a"


def test_create_row_notes_that_int8_is_simulated_in_pytorch(small_artifacts: dict[str, Artifact]) -> None:
    (note,) = create_row(
        "ptq", "ptq", small_artifacts["ptq"], Gate(), measurement(GOOD), "ptq", [], {"ptq": GOOD}
    ).notes
    assert "INT8 is simulated in FP32 here" in note


def onnx_row(artifacts: dict[str, Artifact], name: str, p50_ms: float, earlier: list[StageRow]) -> StageRow:
    measured = measurement(GOOD, p50_ms, "onnxruntime")
    return create_row(
        name, "onnx", artifacts[name], Gate(), measured, "student", earlier, {"student": GOOD, name: GOOD}
    )


@pytest.mark.parametrize(("p50_ms", "noted"), [(2.2, True), (1.95, True), (1.0, False)])
def test_create_row_notes_an_int8_graph_that_is_not_faster_than_its_fp32_twin(
    small_artifacts: dict[str, Artifact], p50_ms: float, noted: bool
) -> None:
    twin = onnx_row(small_artifacts, "onnx-fp32", 2.0, [])
    assert twin.notes == ()
    notes = onnx_row(small_artifacts, "onnx-int8", p50_ms, [twin]).notes
    assert bool(notes) is noted
    if noted:
        assert notes[0].startswith(f"not faster than onnx-fp32 on this machine ({p50_ms / 2:.2f}× its time)")


def test_create_row_notes_nothing_when_there_is_no_twin_to_compare_with(small_artifacts: dict[str, Artifact]) -> None:
    twin = onnx_row(small_artifacts, "onnx-fp32", 2.0, [])
    other = dataclasses.replace(twin, variant="convnext_tiny")
    assert onnx_row(small_artifacts, "onnx-int8", 9.0, [other]).notes == ()


def test_create_row_names_the_folder_of_its_artifact(small_artifacts: dict[str, Artifact]) -> None:
    row = onnx_row(small_artifacts, "onnx-int8", 1.0, [])
    assert Path(row.artifact) == small_artifacts["onnx-int8"].path
