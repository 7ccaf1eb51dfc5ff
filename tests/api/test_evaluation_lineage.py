"""How a file of another origin was evaluated goes with all that is made of it: into its baseline, its teacher and its recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from convnext_deploy import DataOptions, EvaluationOptions, export, quantize, run, validate
from convnext_deploy.api.open_teachers import open_teacher
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.preprocessing import assumed_fields
from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.config.recipe import SOURCE, Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, RecipeError
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint
from convnext_deploy.pipeline.open_artifact import find_baseline, open_input
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import read_report
from convnext_deploy.stages import qat
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress
from tests.rows import accuracy_of, drop_of
from tests.shared import make_once

TRAINED = Preprocess(32, 1.0, "bicubic", IMAGENET_MEAN, IMAGENET_STD)  # what no file tells of the network below
ASKED = PreprocessSettings(image_size=32, crop_pct=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture(scope="module", autouse=True)
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


@pytest.fixture(scope="module")
def brought(small_artifacts: dict[str, Artifact]) -> Path:
    """The student of the small run as another library would leave it: nothing but weights."""

    def save(folder: Path) -> Path:
        torch.save(load_checkpoint(small_artifacts["student"].main_file).state, folder / "best.pth")
        return folder / "best.pth"

    return make_once("brought", save)


@pytest.fixture(scope="module")
def quantized(brought: Path, image_folder: Path) -> RunResult:
    """The file quantized as it was trained; its folder is the parent of `stages`."""

    def make(folder: Path) -> RunResult:
        return quantize(
            brought,
            target="onnxruntime",
            calibration_method="minmax",
            calibration_images=12,
            out=folder / "run",
            data=DataOptions(image_folder, **ASKED.asked()),
        )

    return make_once("brought-quantized", make)


def artifact_of(result: RunResult) -> Artifact:
    return read_artifact(Path(result.report.rows[-1].identity.artifact))


def ancestor_of(artifact: Artifact) -> Artifact:
    found = find_baseline(artifact)
    assert isinstance(found, Artifact), found
    return found


def test_a_file_that_tells_nothing_would_be_evaluated_as_published(brought: Path) -> None:
    assert open_input(brought).preprocess == Preprocess(160, 0.95, "bicubic", (0.5,) * 3, (0.5,) * 3)


def test_export_compares_with_the_ancestor_as_it_was_evaluated(
    quantized: RunResult, small_run: RunResult, image_folder: Path, tmp_path: Path
) -> None:
    before = {row.name: row for row in quantized.report.rows}
    trained = next(row for row in small_run.report.rows if row.name == "student")
    assert accuracy_of(before["source"]).correct == accuracy_of(trained).correct
    result = export(
        before["ptq"].identity.artifact,
        out=tmp_path,
        data=DataOptions(image_folder),
        evaluation=EvaluationOptions(speed_check=False),
    )
    rows = {row.name: row for row in result.report.rows}
    assert accuracy_of(rows["baseline"]).correct == accuracy_of(before["source"]).correct
    assert rows["baseline"].provenance.preprocess == TRAINED
    assert drop_of(rows["source"]) == drop_of(before["ptq"])
    assert not any(row.warnings for row in rows.values())


@pytest.mark.parametrize("asked", [{}, {"image_size": 64}, {"crop_pct": 0.8, "crop_mode": "squash"}], ids=str)
def test_baseline_is_given_what_is_asked_for_its_artifact(asked: dict[str, Any], quantized: RunResult) -> None:
    artifact = open_input(artifact_of(quantized).path, asked=PreprocessSettings(**asked))
    ancestor = ancestor_of(artifact)
    assert ancestor.preprocess == dataclasses.replace(TRAINED, **asked)
    assert (ancestor.model, ancestor.class_names) == (artifact.model, artifact.class_names)


def test_baseline_of_a_float_export_is_normalized_as_asked(small_artifacts: dict[str, Artifact]) -> None:
    asked = PreprocessSettings(mean=(0.5,), std=(0.25,))
    ancestor = ancestor_of(open_input(small_artifacts["onnx-fp32"].path, asked=asked))
    assert (ancestor.preprocess.mean, ancestor.preprocess.std) == ((0.5,) * 3, (0.25,) * 3)


def test_artifact_of_this_tool_passes_on_what_was_asked_of_it(small_artifacts: dict[str, Artifact]) -> None:
    other = dataclasses.replace(small_artifacts["student"].preprocess, image_size=64, interpolation="bilinear")
    made = small_artifacts["ptq"]
    made = dataclasses.replace(made, preprocess=dataclasses.replace(other, mean=made.preprocess.mean))
    assert ancestor_of(made).preprocess == other
    record = dataclasses.replace(made.lineage[-1], preprocess={})  # of a manifest that an earlier version wrote
    assert ancestor_of(dataclasses.replace(made, lineage=(*made.lineage[:-1], record))).preprocess == other


def test_mean_and_std_of_a_quantized_network_stay(quantized: RunResult) -> None:
    with pytest.raises(ArtifactError, match=r"keeps the mean and std that it was quantized with; leave out --mean"):
        open_input(artifact_of(quantized).path, asked=PreprocessSettings(mean=(0.5,)))


def test_mean_and_std_that_are_inside_anyhow_may_be_given_for_what_is_beside_it(
    quantized: RunResult, brought: Path, image_folder: Path
) -> None:
    artifact = artifact_of(quantized)
    rounded = PreprocessSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert open_input(artifact.path, asked=rounded).preprocess == artifact.preprocess
    with pytest.raises(
        ArtifactError, match=r"normalized differently \(mean 0\.485 .* no file tells mean and std of .*best"
    ):
        validate(artifact.path, baseline=brought, data=DataOptions(image_folder, image_size=32, crop_pct=1.0))
    report = validate(artifact.path, baseline=brought, data=DataOptions(image_folder, **ASKED.asked()))
    assert drop_of(report.rows[-1]) == drop_of(quantized.report.rows[-1])


def test_teacher_of_qat_sees_images_as_the_network_was_evaluated(
    quantized: RunResult, small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Preprocess] = []

    class EnoughError(Exception):
        """Raised where training would begin."""

    def open_teacher(artifact: Artifact, *_: object) -> NoReturn:
        seen.append(artifact.preprocess)
        raise EnoughError

    monkeypatch.setattr(qat, "open_teacher", open_teacher)
    recipe = Recipe("qat", (StageEntry("qat", QATConfig(), SOURCE),), source="given")
    with pytest.raises(EnoughError):
        run_recipe(recipe, Settings(tmp_path, Execution()), source=artifact_of(quantized), data=small_data)
    assert seen == [TRAINED]


def test_recipe_of_a_report_opens_the_file_in_the_same_way(quantized: RunResult, tmp_path: Path) -> None:
    text = write_recipe(quantized.report)
    assert text is not None
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml").source_preprocess == ASKED
    out = artifact_of(quantized).path.parents[1]
    assert run(tmp_path / "again.toml", out=out).executed == ()


def test_source_preprocess_without_a_source_is_refused() -> None:
    with pytest.raises(RecipeError, match="has source_preprocess and no source; name the source too"):
        Recipe("r", (StageEntry("qat", QATConfig(), "x"),), source_preprocess=PreprocessSettings(image_size=32))


def test_validate_refuses_a_baseline_that_is_shown_other_images(
    quantized: RunResult, brought: Path, image_folder: Path
) -> None:
    with pytest.raises(
        ArtifactError, match=r"are shown other images \(size 32 and 160, crop 1 and 0\.95\); evaluate both"
    ):
        validate(artifact_of(quantized).path, baseline=brought, data=DataOptions(image_folder))


def test_validate_refuses_a_normalization_that_is_only_assumed(
    small_artifacts: dict[str, Artifact], brought: Path, image_folder: Path
) -> None:
    data = DataOptions(image_folder, image_size=32, crop_pct=1.0)
    with pytest.raises(
        ArtifactError, match=r"normalized differently \(mean 0\.485 .* no file tells mean and std of .*best"
    ):
        validate(small_artifacts["student"].path, baseline=brought, data=data)


def test_report_says_what_is_only_assumed_and_that_no_ancestor_is_at_hand(
    small_artifacts: dict[str, Artifact],
    brought: Path,
    image_folder: Path,
    small_data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = validate(brought, data=DataOptions(image_folder, image_size=32))
    assert report.rows[0].notes == (
        "evaluated with what is only assumed: crop 1 (usual for this size); crop mode center, interpolation bicubic, mean 0.5, "
        "std 0.5 (as published with test_convnext2, because the file does not tell)",
    )
    told = validate(small_artifacts["student"].path, data=DataOptions(image_folder, image_size=32, crop_pct=1.0))
    assert told.rows[0].notes == ()
    alone = dataclasses.replace(small_artifacts["ptq"], lineage=())
    recipe = Recipe("none", (StageEntry("qat", QATConfig(), SOURCE),), source="given")
    monkeypatch.setattr(qat, "run", _stop)
    with pytest.raises(InterruptedError):
        run_recipe(recipe, Settings(tmp_path, Execution()), source=alone, data=small_data)
    (row,) = read_report(tmp_path).rows
    assert row.notes[0] == (
        "no FP32 ancestor is at hand (the artifact does not say what it was made of): drops are against this int8 artifact itself"
    )


def _stop(*_: object) -> NoReturn:
    raise InterruptedError


def test_teacher_takes_only_what_its_file_does_not_tell(brought: Path, small_artifacts: dict[str, Artifact]) -> None:
    options = DataOptions(image_size=64, mean=0.25, std=0.5)
    teacher, asked = open_teacher(brought, None, options, SilentProgress())
    assert (teacher.preprocess.image_size, teacher.preprocess.mean) == (64, (0.25,) * 3)
    assert asked == PreprocessSettings(image_size=64, mean=(0.25,), std=(0.5,))
    own = small_artifacts["student"]
    assert not assumed_fields(own.preprocess)
    assert open_teacher(own.path, None, options, SilentProgress()) == (own, PreprocessSettings())
