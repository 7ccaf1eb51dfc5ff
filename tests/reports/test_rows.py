"""From an artifact and its measurement to a row."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import BASELINE, SOURCE, Gate
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.gate import Verdict
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.evaluation.mistakes import ClassScore, Confusion
from convnext_deploy.evaluation.score import Score
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.reports.record import Accuracy, MeasuredSpeed, StageRow
from convnext_deploy.reports.rows import Role, add_speed, create_row, keep_flips
from tests.reports.conftest import INT8_ROW, SPEED, change
from tests.rows import accuracy_of, drop_of

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
    role = Role("a", "train", "a", Gate(max_top1_drop_pp=0.0))
    row = create_row(role, student, measurement(GOOD), {"a": GOOD})
    per_class = (ClassScore(0, 3, 3), ClassScore(1, 3, 2), ClassScore(2, 2, 2))
    assert row.accuracy == Accuracy(
        "torch", "cpu", 7, 8, 0.875, 1.0, per_class=per_class, confusions=(Confusion(1, 0, 1),)
    )
    assert (row.provenance.baseline, row.verdict) == (None, Verdict())
    assert row.speed == MeasuredSpeed(Latency(1, 2.0, 4.0))
    own = row.identity
    assert (own.artifact, own.variant, own.size_bytes) == (str(student.path), "test_convnext2", student.size_bytes)
    assert row.history.wall_s == student.lineage[-1].wall_s > 0


@pytest.mark.parametrize("kind", [SOURCE, BASELINE])
def test_create_row_of_a_brought_artifact_took_no_time(student: Artifact, kind: str) -> None:
    assert create_row(Role(kind, kind, kind), student, measurement(GOOD), {kind: GOOD}).history.wall_s == 0.0


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
    row = create_row(Role("ptq", "ptq", "a", gate), small_artifacts["ptq"], measurement(WORSE), scores)
    drop = drop_of(row)
    assert row.accuracy is not None
    assert (row.provenance.baseline, row.accuracy.source_drop_pp) == ("a", 25.0)
    assert drop.interval_pp[0] < drop.top1_drop_pp == 25.0 < drop.interval_pp[1]
    assert (row.verdict.passed, len(row.verdict.reasons)) == (passed, reasons)
    assert row.provenance.gate == gate
    assert (drop.lost, drop.gained, row.accuracy.flipped, drop.p_value, drop.agreement) == (2, 0, 2, 0.5, 0.75)
    assert row.verdict.proven is (None if gate.max_top1_drop_pp in (None, 0.0) else False)


def test_create_row_compares_with_the_first_row_besides_the_baseline(small_artifacts: dict[str, Artifact]) -> None:
    scores = {"teacher": GOOD, "student": WORSE, "ptq": WORSE}
    row = create_row(Role("ptq", "ptq", "student"), small_artifacts["ptq"], measurement(WORSE), scores)
    assert row.accuracy is not None
    assert (drop_of(row).top1_drop_pp, row.accuracy.source_drop_pp) == (0.0, 25.0)


def test_create_row_says_why_an_artifact_was_not_run(small_artifacts: dict[str, Artifact]) -> None:
    gate = Gate(max_top1_drop_pp=0.0)
    row = create_row(Role("e", "tensorrt", "a", gate), small_artifacts["engine"], measurement(None), {"a": GOOD})
    assert (row.not_run, row.accuracy, row.verdict.passed) == ("not run: no GPU", None, None)
    assert row.provenance.baseline == "a"


def test_create_row_notes_that_int8_is_simulated_in_pytorch(small_artifacts: dict[str, Artifact]) -> None:
    (note,) = create_row(Role("ptq", "ptq", "ptq"), small_artifacts["ptq"], measurement(GOOD), {"ptq": GOOD}).notes
    assert "INT8 is simulated in FP32 here" in note


def onnx_row(artifacts: dict[str, Artifact], name: str, p50_ms: float, earlier: list[StageRow]) -> StageRow:
    measured = measurement(GOOD, p50_ms, "onnxruntime")
    scores = {"student": GOOD, name: GOOD}
    return create_row(Role(name, "onnx", "student"), artifacts[name], measured, scores, earlier)


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
    other = change(twin, variant="convnext_tiny")
    assert onnx_row(small_artifacts, "onnx-int8", 9.0, [other]).notes == ()


def test_create_row_names_the_folder_of_its_artifact(small_artifacts: dict[str, Artifact]) -> None:
    row = onnx_row(small_artifacts, "onnx-int8", 1.0, [])
    assert Path(row.identity.artifact) == small_artifacts["onnx-int8"].path


def compare(
    artifacts: dict[str, Artifact],
    pairs: list[tuple[int, int, int]],
    data: Data | None = None,
    gate: Gate | None = None,
) -> tuple[StageRow, dict[str, Score]]:
    """Return the row of an artifact with such labels, predictions before and predictions after, and both scores."""
    labels, before, after = (tuple(column) for column in zip(*pairs, strict=True))
    scores = {
        name: Score(sum(map(int.__eq__, guesses, labels)), len(labels), guesses, labels)
        for name, guesses in (("a", before), ("ptq", after))
    }
    measured = measurement(scores["ptq"])
    role = Role("ptq", "ptq", "a", gate or Gate())
    return create_row(role, artifacts["ptq"], measured, scores, data=data), scores


def of_class(label: int, total: int, lost: int, gained: int) -> list[tuple[int, int, int]]:
    wrong = (label + 1) % 3
    kept = total - lost - gained
    return [(label, label, wrong)] * lost + [(label, wrong, label)] * gained + [(label, label, label)] * kept


def test_create_row_lists_changes_by_class_and_image(small_artifacts: dict[str, Artifact], small_data: Data) -> None:
    pairs = of_class(0, 6, 1, 0) + of_class(1, 6, 0, 0) + of_class(2, 6, 0, 2)
    row, _ = compare(small_artifacts, pairs, small_data)
    assert [
        (change.name, change.total, change.baseline_correct, change.correct) for change in accuracy_of(row).classes
    ] == [("cat", 6, 6, 5), ("dog", 6, 6, 6), ("owl", 6, 4, 6)]
    assert [change.top1_drop_pp for change in accuracy_of(row).classes] == pytest.approx([100 / 6, 0.0, -200 / 6])
    assert [(flip.image, flip.change) for flip in accuracy_of(row).flips] == [
        ("val/cat/0.png", "lost"),
        ("val/owl/0.png", "gained"),
        ("val/owl/1.png", "gained"),
    ]
    assert row.notes == compare(small_artifacts, of_class(0, 18, 0, 0))[0].notes, "all may be chance"


def test_create_row_keeps_the_first_images_and_counts_all(small_artifacts: dict[str, Artifact]) -> None:
    row, _ = compare(small_artifacts, of_class(0, 50, 10, 30))
    found, drop = accuracy_of(row), drop_of(row)
    assert (found.flipped, drop.lost, drop.gained, len(found.flips)) == (40, 10, 30, 20)
    assert [flip.change for flip in found.flips] == ["lost"] * 10 + ["gained"] * 10
    assert [flip.image for flip in found.flips] == [None] * 20


@pytest.mark.parametrize(("lost", "gained", "noted"), [(6, 0, True), (0, 6, True), (5, 0, False), (10, 4, False)])
def test_create_row_notes_a_change_beyond_chance(
    small_artifacts: dict[str, Artifact], lost: int, gained: int, noted: bool
) -> None:
    row, _ = compare(small_artifacts, of_class(0, 100, lost, gained))
    expected = f"{lost} images lost and {gained} gained: beyond chance (exact McNemar p = 0.031)"
    assert row.notes[:1] == (expected,) if noted else all("beyond chance" not in note for note in row.notes)


def test_create_row_names_the_classes_that_lose_beyond_chance(
    small_artifacts: dict[str, Artifact], small_data: Data
) -> None:
    """The losses of one class are hidden in top-1 by the gains of another."""
    pairs = of_class(0, 50, 12, 0) + of_class(1, 50, 0, 12) + of_class(2, 50, 3, 3)
    unnamed: Any = object()  # images without files
    row, _ = compare(small_artifacts, pairs, dataclasses.replace(small_data, validation=unnamed))
    assert drop_of(row).top1_drop_pp == 0.0
    # 2 / 2^12 by three tests
    assert row.notes[0] == (
        "classes that lose beyond chance, after Holm's correction: cat +24.0 pp (12 lost, 0 gained of 50, p = 0.0015)"
    )


def test_create_row_names_the_three_classes_that_lose_most(small_artifacts: dict[str, Artifact]) -> None:
    pairs = [(label, label, 99) for label in range(5) for _ in range(20 + label)] + of_class(9, 50, 0, 0)
    row, _ = compare(small_artifacts, pairs + [(label, label, label) for label in range(5)])
    note = row.notes[1]
    assert [f"{label} +" in note for label in range(5)] == [False, False, True, True, True]
    assert note.index("4 +") < note.index("3 +") < note.index("2 +")
    assert note.endswith("; and 2 more")


def test_create_row_gives_the_verdict_of_too_few_images(small_artifacts: dict[str, Artifact]) -> None:
    row, _ = compare(small_artifacts, of_class(0, 540, 0, 0), gate=Gate(max_top1_drop_pp=0.5))
    assert row.verdict.images_needed == 1568
    assert (row.verdict.passed, row.verdict.proven) == (True, False)
    assert row.verdict.notes[0].startswith("540 images cannot tell whether top-1 drops by more than 0.50 pp")
    assert row.verdict.notes[0].endswith("about 1,600 would do if nothing was lost")
    upper, _ = compare(small_artifacts, of_class(0, 540, 0, 0), gate=Gate(max_top1_drop_pp=0.5, on="upper"))
    assert upper.verdict.images_needed == 1568
    assert (upper.verdict.passed, upper.verdict.proven) == (False, False)
    assert upper.provenance.gate.on == "upper"


def test_create_row_proves_nothing_by_a_baseline_that_guesses(
    small_artifacts: dict[str, Artifact], small_data: Data
) -> None:
    """A baseline opened at the wrong image size: the artifact gains, and no drop can be seen."""
    pairs = [(label, (label + index) % 3, label) for label in range(3) for index in range(200)]
    row, _ = compare(small_artifacts, pairs, gate=Gate(max_top1_drop_pp=0.5))
    assert drop_of(row).interval_pp[1] < 0
    assert (row.verdict.passed, row.verdict.proven) == (True, False)
    assert [text.partition(",")[0] for text in row.warnings] == ["top-1 is 66.50 pp above that of a"]
    assert row.verdict.notes == ("passed, which proves nothing: a is no better than guessing",)
    both, _ = compare(small_artifacts, [(label, guess, guess) for label, guess, _ in pairs], small_data)
    assert both.warnings[0].startswith("top-1 33.50 % on 600 images is chance level: guessing gives 33.3 % with 3")
    assert "order of the classes (here 0 = cat, 1 = dog, 2 = owl)" in both.warnings[0]


def test_create_row_measures_calibration_and_the_worst_class_and_gates_them(
    small_artifacts: dict[str, Artifact], small_data: Data
) -> None:
    """Top-1 stays, while one class pays for another and the network is surer of it."""
    pairs = of_class(0, 50, 12, 0) + of_class(1, 50, 0, 12) + of_class(2, 50, 0, 0)
    labels, before, now = zip(*pairs, strict=True)
    scores = {
        name: Score(138, 150, guesses, labels, (confidence,) * 150)
        for name, guesses, confidence in (("a", before, 0.92), ("ptq", now, 0.99))
    }
    unnamed: Any = object()  # images without files
    data = dataclasses.replace(small_data, validation=unnamed)
    for gate, failed in (
        (Gate(max_top1_drop_pp=20.0), ()),
        (Gate(max_class_drop_pp=20.0, max_ece_increase_pp=5.0), ("class 'cat', 50 images", "from 0.00 to 7.00 %")),
        (Gate(max_class_drop_pp=24.0, max_ece_increase_pp=7.0), ()),
    ):
        role = Role("ptq", "ptq", "a", gate)
        row = create_row(role, small_artifacts["ptq"], measurement(scores["ptq"]), scores, (), data)
        assert (drop_of(row).top1_drop_pp, row.verdict.passed) == (0.0, not failed)
        assert len(row.verdict.reasons) == len(failed)
        assert all(any(words in reason for reason in row.verdict.reasons) for words in failed)
        found = accuracy_of(row)
        assert found.calibration is not None
        assert (found.calibration.ece, found.calibration.increase_pp) == pytest.approx((0.07, 7.0))
        assert found.worst_class is not None
        assert (found.worst_class.label, found.worst_class.drop_pp, found.worst_class.classes) == (0, 24.0, 3)
    alone = create_row(Role("a", "train", "a"), small_artifacts["student"], measurement(scores["a"]), scores)
    assert accuracy_of(alone).worst_class is None
    own = accuracy_of(alone).calibration
    assert own is not None
    assert own.ece == pytest.approx(0.0)
    assert own.increase_pp is None


def test_keep_flips_writes_all_images_and_removes_those_of_another_comparison(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    row, scores = compare(small_artifacts, of_class(0, 50, 10, 30))
    keep_flips(tmp_path, row, scores, None)
    path = tmp_path / "flips" / "ptq.json"
    content = json.loads(path.read_text())
    assert (content["artifact"], content["baseline"], content["total"]) == ("ptq", "a", 50)
    assert len(content["images"]) == content["flipped"] == 40
    assert content["images"][:20] == [dataclasses.asdict(flip) for flip in accuracy_of(row).flips]
    alone = create_row(Role("ptq", "ptq", "ptq"), small_artifacts["ptq"], measurement(GOOD), {"ptq": GOOD})
    keep_flips(tmp_path, alone, {"ptq": GOOD}, None)
    assert not path.exists()
    keep_flips(tmp_path / "new", alone, {"ptq": GOOD}, None)


@pytest.mark.parametrize(
    ("passed", "proven", "factor", "expected"),
    [
        (None, None, None, (False, True)),
        (True, True, None, (False, True)),
        (False, None, 0.45, (False, False)),
        (None, None, 0.45, (True, False)),
        (True, False, 0.3, (True, False)),
        (True, True, 0.3, (True, True)),
    ],
)
def test_add_speed_fails_what_is_too_slow_and_saves_nothing_else(
    passed: bool | None, proven: bool | None, factor: float | None, expected: tuple[bool, bool]
) -> None:
    verdict = Verdict(passed, ("first",), proven, notes=("note",))
    found = add_speed(change(INT8_ROW, verdict=verdict, gate=Gate(min_speedup=factor)), SPEED)
    judged = found.verdict
    assert (judged.passed, judged.proven) == expected
    assert (found.speed.against_float, judged.reasons[0], judged.notes[0]) == (SPEED, "first", "note")
    too_slow = factor is None
    assert found.speed.ship == (SPEED.path if too_slow else None)
    assert any("ship student-float-onnxruntime instead" in reason for reason in judged.reasons) is too_slow


def test_add_speed_says_why_nothing_was_measured_and_leaves_the_verdict() -> None:
    row = change(INT8_ROW, gate=Gate(min_speedup=2))
    assert add_speed(row, "no GPU") == change(
        row, not_measured="no GPU", notes=(*row.notes, "speed not measured: no GPU")
    )


def test_gate_proves_nothing_beside_a_baseline_that_seems_not_to_work(small_artifacts: dict[str, Artifact]) -> None:
    scores = {"a": GOOD, "ptq": GOOD}
    baseline = create_row(Role("a", "train", "a"), small_artifacts["student"], measurement(GOOD), {"a": GOOD})
    doubted = dataclasses.replace(baseline, warnings=("top-1 is far below what is published",))
    role = Role("ptq", "ptq", "a", Gate(max_top1_drop_pp=100.0))
    for earlier, proven in ((baseline, True), (doubted, False)):
        row = create_row(role, small_artifacts["ptq"], measurement(GOOD), scores, (earlier,))
        assert (row.verdict.passed, row.verdict.proven) == (True, proven)
    assert row.verdict.notes[-1] == "passed, which proves nothing: a seems not to work as it is evaluated here"


def test_create_row_compares_with_the_source_where_its_ancestor_comes_first(
    small_artifacts: dict[str, Artifact],
) -> None:
    scores = {"baseline": GOOD, "source": WORSE, "onnx": WORSE}
    found = []
    for name, kind in (("source", "source"), ("onnx", "onnx")):
        row = create_row(Role(name, kind, "baseline"), small_artifacts["ptq"], measurement(WORSE), scores)
        assert row.accuracy is not None
        assert drop_of(row).top1_drop_pp == 25.0
        found.append(row.accuracy.source_drop_pp)
    assert found == [None, 0.0]


def test_row_says_what_opens_a_bare_file_again(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    file = tmp_path / "bare.onnx"
    shutil.copy(small_artifacts["onnx-fp32"].main_file, file)
    row = create_row(Role("a", "source", "a"), open_input(file), measurement(GOOD), {"a": GOOD})
    assert row.identity.artifact == str(tmp_path / "bare.onnx")
