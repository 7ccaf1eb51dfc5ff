"""Which artifact a drop is measured against, and what a gate does with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe import BASELINE, SOURCE, Gate, Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.agreement import check_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, DataError, DeployError
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.reports.record import StageRow, read_report
from tests.pipeline.conftest import Rerun, change_stage, settings_for
from tests.pipeline.test_failure import failing
from tests.rows import accuracy_of, drop_of


def rows_by_name(result: RunResult) -> dict[str, StageRow]:
    return {row.name: row for row in result.report.rows}


def predictions(out: Path, name: str) -> tuple[list[int], list[int]]:
    score = json.loads((out / "scores" / f"{name}.json").read_text())["score"]
    return score["predictions"], score["labels"]


def test_baseline_is_the_nearest_fp32_pytorch_ancestor(small_run: RunResult) -> None:
    baselines = {row.name: row.provenance.baseline for row in small_run.report.rows}
    assert baselines == {
        "teacher": None,
        "student": None,
        "ptq": "student",
        "qat": "student",
        "quantize": "student",
        "onnx-fp32": "student",
        "onnx-int8": "student",
        "engine": "student",
    }


def test_drop_and_agreement_are_recomputed_from_the_predictions(small_run: RunResult) -> None:
    out = Path(small_run.report.rows[0].identity.artifact).parents[1]
    compared = 0
    for row in small_run.report.rows:
        found, baseline = row.accuracy, row.provenance.baseline
        if found is None:
            continue
        guessed, labels = predictions(out, row.name)
        correct = sum(a == b for a, b in zip(guessed, labels, strict=True))
        assert (found.correct, found.total, found.top1) == (correct, len(labels), correct / len(labels))
        first, _ = predictions(out, "teacher")
        if row.name != "teacher":
            lost = sum(a == b for a, b in zip(first, labels, strict=True)) - correct
            assert found.source_drop_pp == pytest.approx(100 * lost / len(labels), abs=1e-9)
        if baseline is not None:
            compared += 1
            before, _ = predictions(out, baseline)
            lost = sum(a == b for a, b in zip(before, labels, strict=True)) - correct
            drop = drop_of(row)
            assert drop.top1_drop_pp == pytest.approx(100 * lost / len(labels), abs=1e-9)
            assert drop.agreement == sum(a == b for a, b in zip(before, guessed, strict=True)) / len(labels)
            low, high = drop.interval_pp
            assert low <= drop.top1_drop_pp <= high
    assert compared >= 4


def test_baseline_row_has_no_drop_and_the_first_row_none_to_the_source(small_run: RunResult) -> None:
    rows = rows_by_name(small_run)
    for name in ("teacher", "student"):
        assert accuracy_of(rows[name]).drop is None
    assert accuracy_of(rows["teacher"]).source_drop_pp is None
    assert accuracy_of(rows["student"]).source_drop_pp is not None


def ptq_of(artifact: Artifact, gate: Gate) -> Recipe:
    stage = StageEntry("ptq", PTQConfig(calibration_images=6), SOURCE, gate)
    return Recipe("r", (stage,), source=str(artifact.path))


def test_brought_fp32_artifact_is_first_row_and_baseline(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    student = small_artifacts["student"]
    recipe = ptq_of(student, Gate(max_top1_drop_pp=100.0))
    result = run_recipe(recipe, settings_for(tmp_path), source=student, data=small_data)
    source, ptq = result.report.rows
    assert (source.name, source.identity.kind, source.provenance.baseline) == (SOURCE, SOURCE, None)
    assert (source.history.wall_s, source.verdict.passed) == (0.0, None)
    assert (ptq.provenance.baseline, ptq.verdict.passed) == (SOURCE, True)
    assert drop_of(ptq).top1_drop_pp == accuracy_of(ptq).source_drop_pp


def test_brought_int8_artifact_is_compared_with_its_fp32_ancestor(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    recipe = Recipe("r", (StageEntry("again", PTQConfig(), SOURCE),), source=str(small_artifacts["ptq"].path))
    with pytest.raises(ArtifactError, match="already int8"):
        run_recipe(recipe, settings_for(tmp_path), source=small_artifacts["ptq"], data=small_data)
    assert not (tmp_path / "report.json").exists(), "it is refused before anything is measured"
    recipe = dataclasses.replace(recipe, stages=(StageEntry("next", ONNXConfig(), SOURCE),))
    with failing(ONNXConfig, DeployError("broken")), pytest.raises(DeployError, match="broken"):
        run_recipe(recipe, settings_for(tmp_path), source=small_artifacts["ptq"], data=small_data)
    first, second = read_report(tmp_path).rows
    assert (first.name, first.identity.artifact) == (BASELINE, str(small_artifacts["student"].location))
    assert (second.name, second.provenance.baseline) == (SOURCE, BASELINE)


def test_brought_int8_file_without_lineage_is_its_own_reference(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    bare = open_input(small_artifacts["ptq"].main_file)
    recipe = Recipe("r", (StageEntry("next", ONNXConfig(), SOURCE),), source=str(bare.main_file))
    with failing(ONNXConfig, DeployError("broken")), pytest.raises(DeployError, match="broken"):
        run_recipe(recipe, settings_for(tmp_path), source=bare, data=small_data)
    (row,) = read_report(tmp_path).rows
    assert (row.name, row.provenance.baseline, accuracy_of(row).drop) == (SOURCE, None, None)


def test_run_recipe_without_data_says_that_nothing_was_validated(
    rerun: Rerun, light_recipe: Recipe, small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    onnx = dataclasses.replace(light_recipe.stages[-1], source=SOURCE, gate=Gate(max_top1_drop_pp=0.0))
    recipe = Recipe("r", (onnx,), source="student")
    result = run_recipe(recipe, settings_for(tmp_path), source=small_artifacts["student"])
    assert [(row.accuracy, row.verdict.passed, row.not_run) for row in result.report.rows] == [
        (None, None, "not validated: no --data")
    ] * 2
    assert result.report.passed


def other_classes(small_data: Data) -> Data:
    return dataclasses.replace(small_data, class_names=("cat", "elk", "owl"))


def test_source_of_other_classes_is_not_validated_when_it_only_starts_the_training(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    student, data = small_artifacts["student"], other_classes(small_data)
    config = TrainConfig(ModelConfig(student.model.variant, 32), UNTRAINED)
    train = StageEntry("model", config, SOURCE, Gate(max_top1_drop_pp=100.0))
    ptq = StageEntry("ptq", PTQConfig(calibration_images=6), "model", Gate(max_top1_drop_pp=100.0))
    recipe = Recipe("r", (train, ptq), source=str(student.path))
    source, model, quantized = run_recipe(recipe, settings_for(tmp_path), source=student, data=data).report.rows
    assert (source.accuracy, source.not_run) == (
        None,
        f"not validated: source was trained with class 'dog' where {data.name} has 'elk'; use the same classes.",
    )
    assert (model.provenance.baseline, accuracy_of(model).source_drop_pp, accuracy_of(model).total) == (None, None, 18)
    assert (quantized.provenance.baseline, quantized.verdict.passed) == ("model", True)


@pytest.mark.parametrize("use", ["ptq", "teacher"])
def test_source_of_other_classes_is_refused_when_it_is_more_than_a_start(
    use: str, small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    student = small_artifacts["student"]
    train = StageEntry("model", TrainConfig(ModelConfig(student.model.variant, 32), UNTRAINED), SOURCE)
    teach = StageEntry("more", DistillConfig(ModelConfig("atto", 32), SOURCE, UNTRAINED), None)
    more = StageEntry("more", PTQConfig(calibration_images=6), SOURCE) if use == "ptq" else teach
    recipe = Recipe("r", (train, more), source=str(student.path))
    with pytest.raises(DataError, match="was trained with class 'dog'"):
        run_recipe(recipe, settings_for(tmp_path), source=student, data=other_classes(small_data))
    assert not (tmp_path / "stages").exists()


# At this learning rate two steps change nothing, so the network still guesses and cannot be right on all images.
UNTRAINED = FitConfig(epochs=1, batch_size=16, base_learning_rate=1e-9, warmup_epochs=0.0)


def test_failed_gate_is_written_to_both_reports_with_its_reason(small_data: Data, tmp_path: Path) -> None:
    train = StageEntry("model", TrainConfig(ModelConfig("atto", 32), UNTRAINED), None, Gate(min_top1=1.0))
    ptq = StageEntry("ptq", PTQConfig(calibration_images=6), "model")
    result = run_recipe(Recipe("r", (train, ptq)), settings_for(tmp_path), data=small_data)
    assert not result.report.passed
    assert result.report.complete, "the stages after a failed gate still run"
    model, after = result.report.rows
    assert (model.verdict.passed, after.verdict.passed) == (False, None)
    reason = f"top-1 {100 * accuracy_of(model).value:.2f} % is below the 100.00 % asked for"
    assert model.verdict.reasons == (reason,)
    assert read_report(tmp_path) == result.report
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False
    markdown = (tmp_path / "report.md").read_text()
    assert f"- model: {reason}" in markdown
    assert "1 of 1 gates failed: model" in markdown


def test_gate_is_judged_anew_when_only_the_gate_changes(rerun: Rerun, light_recipe: Recipe) -> None:
    verdicts = []
    for gate in (Gate(), Gate(max_top1_drop_pp=100.0), Gate(min_top1=0.0)):
        result = rerun(change_stage(light_recipe, "ptq", gate=gate))
        assert result.executed == ()
        verdicts.append(rows_by_name(result)["ptq"].verdict.passed)
    assert verdicts == [None, True, True]


def test_check_classes_raises_when_number_or_names_differ(
    small_artifacts: dict[str, Artifact], small_data: Data
) -> None:
    student = small_artifacts["student"]
    check_classes("student", student, small_data)
    check_classes("student", dataclasses.replace(student, class_names=None), small_data)
    fewer = dataclasses.replace(small_data, class_names=("cat", "dog"))
    with pytest.raises(DataError, match=r"student has 3 classes, .* has 2"):
        check_classes("student", student, fewer)
    other = dataclasses.replace(small_data, class_names=("cat", "elk", "owl"))
    with pytest.raises(DataError, match=r"student was trained with class 'dog' where .* has 'elk'"):
        check_classes("student", student, other)
