"""What is up to date is not done again; what changed, was damaged or is missing is, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.config.recipe import Gate, Recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.datasets import open_data
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.reports.record import read_report
from tests.conftest import CLASSES, draw_image, write_image_folder
from tests.pipeline.conftest import STAGES, Rerun, change_stage, hashes, settings_for
from tests.shared import heavy_except


def test_run_recipe_executes_every_stage_in_order_when_nothing_is_there(light_run: RunResult) -> None:
    assert light_run.executed == STAGES
    assert tuple(row.name for row in light_run.report.rows) == STAGES
    assert light_run.report.complete


def test_run_recipe_executes_nothing_when_run_again(rerun: Rerun, light_run: RunResult) -> None:
    first, second = rerun(), rerun()
    assert (first.executed, second.executed) == ((), ())
    assert second.report == first.report
    assert hashes(second) == hashes(light_run)
    moved, kept = (
        [dataclasses.replace(row, identity=dataclasses.replace(row.identity, artifact="")) for row in report.rows]
        for report in (first.report, light_run.report)
    )
    assert moved == kept


def test_run_recipe_writes_the_report_that_it_returns(rerun: Rerun, copied: Path) -> None:
    result = rerun()
    assert read_report(copied) == result.report


def test_run_recipe_gives_the_same_bytes_in_another_folder(
    light_recipe: Recipe, light_run: RunResult, tmp_path: Path
) -> None:
    short = dataclasses.replace(light_recipe, stages=light_recipe.stages[:3])
    # another folder of equal images: other paths and times, so nothing could be taken from the first run
    data = open_data(str(write_image_folder(tmp_path / "images")))
    result = run_recipe(short, settings_for(tmp_path / "out"), data=data)
    assert hashes(result) == {name: hashes(light_run)[name] for name in STAGES[:3]}


@pytest.mark.parametrize(
    ("stage", "changes", "executed"),
    [
        ("qat", {"temperature": 2.0}, ("qat",)),
        pytest.param("ptq", {"calibration_images": 9}, ("ptq", "qat"), marks=pytest.mark.heavy),
        # The percentile does not count for min-max: the stage runs, gives the same bytes, and what reads them stays.
        ("minmax", {"percentile": 99.0}, ("minmax",)),
        pytest.param("minmax", {"calibration_images": 3}, ("minmax", "onnx"), marks=pytest.mark.heavy),
        ("ptq", {"gate": Gate(max_top1_drop_pp=100.0)}, ()),
    ],
)
def test_run_recipe_repeats_a_changed_stage_and_only_what_depends_on_it(
    rerun: Rerun, light_recipe: Recipe, stage: str, changes: dict[str, object], executed: tuple[str, ...]
) -> None:
    result = rerun(change_stage(light_recipe, stage, **changes), restart=True)
    assert result.executed == executed
    assert tuple(row.name for row in result.report.rows) == STAGES
    assert rerun(change_stage(light_recipe, stage, **changes)).executed == ()


@pytest.mark.heavy
def test_run_recipe_returns_to_the_first_result_when_a_change_is_taken_back(
    rerun: Rerun, light_recipe: Recipe, light_run: RunResult
) -> None:
    changed = rerun(change_stage(light_recipe, "qat", temperature=2.0), restart=True)
    assert hashes(changed)["qat"] != hashes(light_run)["qat"]
    restored = rerun(restart=True)
    assert restored.executed == ("qat",)
    assert hashes(restored) == hashes(light_run)


def test_run_recipe_repeats_training_when_its_settings_change(rerun: Rerun, light_recipe: Recipe) -> None:
    config = light_recipe.stages[0].config
    assert isinstance(config, TrainConfig)
    short = dataclasses.replace(light_recipe, stages=light_recipe.stages[:2])
    result = rerun(change_stage(short, "model", fit=dataclasses.replace(config.fit, weight_decay=0.0)), restart=True)
    assert result.executed == ("model", "ptq")


def test_run_recipe_repeats_everything_when_the_seed_changes(rerun: Rerun, light_recipe: Recipe) -> None:
    short = dataclasses.replace(light_recipe, stages=light_recipe.stages[:2], seed=4)
    assert rerun(short, restart=True).executed == ("model", "ptq")


@pytest.mark.slow
def test_run_recipe_repeats_what_reads_images_when_an_image_was_rewritten(light_recipe: Recipe, tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images", train=6, validation=3)
    out = tmp_path / "out"
    first = run_recipe(light_recipe, settings_for(out), data=open_data(str(folder)))
    assert first.executed == STAGES
    image = folder / "val" / CLASSES[0] / "0.png"
    draw_image(0, np.random.default_rng(99)).save(image)
    again = dataclasses.replace(settings_for(out), restart=True)
    second = run_recipe(light_recipe, again, data=open_data(str(folder)))
    # Only a validation image changed, so every stage that reads images gives the same bytes; the export reads none.
    assert second.executed == ("model", "ptq", "qat", "minmax")
    assert hashes(second) == hashes(first)


def test_run_recipe_scores_again_when_only_the_scores_are_lost(
    rerun: Rerun, copied: Path, light_run: RunResult
) -> None:
    shutil.rmtree(copied / "scores")
    result = rerun()
    assert result.executed == ()
    assert [row.accuracy for row in result.report.rows] == [row.accuracy for row in light_run.report.rows]


@pytest.mark.parametrize("text", heavy_except(("{", '{"key": 1}'), ("", "{", "[]", '{"key": 1}')))
def test_run_recipe_scores_again_when_a_score_is_damaged(rerun: Rerun, copied: Path, text: str) -> None:
    path = copied / "scores" / "ptq.json"
    before = json.loads(path.read_text())
    path.write_text(text)
    assert rerun().executed == ()
    after = json.loads(path.read_text())
    assert (after["key"], after["score"]) == (before["key"], before["score"])


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", flip_byte),
        pytest.param("model.safetensors", cut, marks=pytest.mark.heavy),
        ("model.safetensors", Path.unlink),
        ("manifest.json", cut),
        pytest.param("manifest.json", Path.unlink, marks=pytest.mark.heavy),
    ],
)
def test_run_recipe_notices_a_damaged_file_and_makes_it_again(
    rerun: Rerun, copied: Path, light_run: RunResult, name: str, damage: Callable[[Path], None]
) -> None:
    damage(copied / "stages" / "qat" / name)
    result = rerun()
    assert result.executed == ("qat",)
    assert hashes(result) == hashes(light_run)


def test_run_recipe_keeps_what_follows_a_damaged_stage_when_its_bytes_come_back(rerun: Rerun, copied: Path) -> None:
    cut(copied / "stages" / "model" / "model.safetensors")
    assert rerun().executed == ("model",)


def test_run_recipe_executes_a_stage_whose_folder_is_gone(rerun: Rerun, copied: Path) -> None:
    shutil.rmtree(copied / "stages" / "ptq")
    assert rerun().executed == ("ptq",)
