"""A plan says what a run would execute, and touches nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.pipeline.run import plan_recipe
from tests.conftest import write_image_folder
from tests.pipeline.conftest import STAGES, Rerun, change_stage


def would_run(recipe: Recipe, out: Path, data: Data | None, source: Artifact | None = None) -> tuple[str, ...]:
    plan = plan_recipe(recipe, out, source, data, {})
    assert tuple(stage for stage, _ in plan) == recipe.stages
    return tuple(stage.name for stage, runs in plan if runs)


def test_plan_recipe_names_every_stage_when_nothing_is_there(
    light_recipe: Recipe, small_data: Data, tmp_path: Path
) -> None:
    assert would_run(light_recipe, tmp_path / "out", small_data) == STAGES
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        (None, {}, ()),
        ("qat", {"temperature": 2.0}, ("qat",)),
        ("ptq", {"calibration_images": 9}, ("ptq", "qat")),
        ("minmax", {"calibration_images": 9}, ("minmax", "onnx")),
    ],
)
def test_plan_recipe_names_a_changed_stage_and_what_depends_on_it(
    light_recipe: Recipe,
    small_data: Data,
    copied: Path,
    stage: str | None,
    changes: dict[str, int],
    expected: tuple[str, ...],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    recipe = change_stage(light_recipe, stage, **changes) if stage else light_recipe
    assert would_run(recipe, copied, small_data) == expected
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_plan_recipe_names_every_stage_when_seed_or_data_change(
    light_recipe: Recipe, small_data: Data, copied: Path, tmp_path: Path
) -> None:
    assert would_run(dataclasses.replace(light_recipe, seed=4), copied, small_data) == STAGES
    other = open_data(str(write_image_folder(tmp_path / "images", train=2, validation=1)))
    assert would_run(light_recipe, copied, other) == STAGES


def test_plan_recipe_agrees_with_the_run(rerun: Rerun, light_recipe: Recipe, small_data: Data, copied: Path) -> None:
    recipe = change_stage(light_recipe, "ptq", calibration_images=6)
    expected = would_run(recipe, copied, small_data)
    assert rerun(recipe, restart=True).executed == expected
    assert would_run(recipe, copied, small_data) == ()


def test_plan_recipe_plans_from_a_brought_artifact_without_data(
    small_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    stage = StageEntry("onnx", ONNXConfig(), "source")
    recipe = Recipe("r", (stage,), source=str(small_artifacts["student"].path))
    assert would_run(recipe, tmp_path, None, small_artifacts["student"]) == ("onnx",)
