"""What an earlier run made with other settings, inputs, images or results is named, and replaced only when that is asked for."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.quantize import quantize
from convnext_deploy.api.run import plan_run
from convnext_deploy.api.validate import validate
from convnext_deploy.artifacts.artifact import Artifact, read_artifact, write_manifest
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.errors import OutputError, RecipeError
from convnext_deploy.pipeline.open_artifact import find_baseline
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.reports.record import read_report
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress
from tests.conftest import write_image_folder
from tests.pipeline.conftest import STAGES, Rerun, change_stage, hashes, settings_for

WAYS_OUT = "Nothing was changed; give another --out to keep that, or --restart to replace it."


class Heard(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file of a run but what can be computed again."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "cache")
    return {path: path.read_bytes() for path in paths}


def refused(folder: Path, act: Callable[[], object]) -> str:
    """Return the text of the refusal, after checking that it is one line and that nothing was changed."""
    before = contents(folder)
    with pytest.raises(OutputError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert contents(folder) == before
    return text


def change_fit(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    config: Any = next(stage.config for stage in recipe.stages if stage.name == name)
    return change_stage(recipe, name, fit=dataclasses.replace(config.fit, **changes))


def test_other_settings_are_named_before_any_work_and_replaced_when_asked(
    rerun: Rerun, copied: Path, light_recipe: Recipe, light_run: RunResult
) -> None:
    recipe = change_stage(light_recipe, "ptq", calibration_images=9, percentile=99.0)
    recipe = change_fit(recipe, "qat", weight_decay=0.25)
    assert refused(copied, lambda: rerun(recipe)) == (
        f"{copied} holds what was made otherwise: ptq (percentile 99.99 → 99.0, calibration_images 12 → 9); qat "
        f"(fit.weight_decay 0.05 → 0.25). {WAYS_OUT}"
    )
    changed = rerun(change_stage(light_recipe, "minmax", percentile=99.0), restart=True)
    assert changed.executed == ("minmax",)
    assert hashes(changed)["model"] == hashes(light_run)["model"]
    assert "minmax (percentile 99.0 → 99.99)" in refused(copied, rerun)


def test_other_seeds_images_and_results_are_named(
    rerun: Rerun, copied: Path, light_recipe: Recipe, small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "model, ptq, qat, minmax, onnx (seed 3 → 4)." in refused(
        copied, lambda: rerun(dataclasses.replace(light_recipe, seed=4))
    )
    other = open_data(str(write_image_folder(tmp_path / "big", train=2, validation=1)))
    text = refused(copied, lambda: rerun(data=other))
    assert (
        f"model, ptq, qat, minmax (data {small_data.name} → {other.name}, which hold other images, or others under these names)"
        in text
    )
    monkeypatch.setattr(PTQConfig, "result_version", PTQConfig.result_version + 1)
    text = refused(copied, rerun)
    now = PTQConfig.result_version
    versions = f"ptq {now - 1} → {now}"
    assert (
        f" ptq, minmax (version of the results of {versions}: this release gives others for the same settings)" in text
    )
    assert "model" not in text.split(": ", 1)[1]


def test_images_elsewhere_are_the_same_and_those_that_changed_in_place_are_not(
    rerun: Rerun, copied: Path, small_data: Data, tmp_path: Path
) -> None:
    root = tmp_path / "scratch" / "job-17"
    shutil.copytree(small_data.name, root)
    assert rerun(data=open_data(str(root))).executed == ()
    score = (copied / "scores" / "ptq.json").read_bytes()
    assert rerun(data=open_data(os.path.relpath(root))).executed == ()
    assert (copied / "scores" / "ptq.json").read_bytes() == score
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "1.png")
    assert "which hold other images" in refused(copied, lambda: rerun(data=open_data(str(root))))


def test_stages_that_the_recipe_no_longer_has_are_not_dropped_from_the_report(
    rerun: Rerun, copied: Path, light_recipe: Recipe
) -> None:
    short = dataclasses.replace(light_recipe, stages=light_recipe.stages[:2])
    assert refused(copied, lambda: rerun(short)) == (
        f"{copied} holds the report of 'light' with 5 rows, and that of 'light' would drop qat, minmax, onnx. {WAYS_OUT}"
    )
    assert rerun(short, restart=True).executed == ()
    assert rerun().executed == (), "what was made is still there"


def test_plan_run_finds_what_would_be_refused(
    copied: Path, light_recipe: Recipe, small_data: Data, tmp_path: Path
) -> None:
    recipe = change_stage(light_recipe, "minmax", calibration_images=3)
    data = DataOptions(small_data.name)
    assert "minmax (calibration_images 12 → 3)" in refused(copied, lambda: plan_run(recipe, out=copied, data=data))
    plan = plan_run(recipe, out=copied, data=data, execution=ExecutionOptions(restart=True))
    assert [stage.name for stage, would_run in plan if would_run] == ["minmax", "onnx"]
    plan_run(recipe, out=tmp_path / "new", data=data)
    assert not (tmp_path / "new").exists()


def test_a_training_in_progress_is_not_begun_anew_unasked(
    rerun: Rerun,
    copied: Path,
    light_recipe: Recipe,
    light_run: RunResult,
    small_data: Data,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = dataclasses.replace(light_recipe, stages=light_recipe.stages[:1])
    shutil.rmtree(copied / "stages")
    (copied / "report.json").unlink()
    changed = change_fit(only, "model", weight_decay=0.25)
    text = refused(copied, lambda: rerun(changed))
    assert "model (a training at step 2, with fit.weight_decay 0.05 → 0.25)" in text
    monkeypatch.setattr(TrainConfig, "result_version", TrainConfig.result_version + 1)
    text = refused(copied, lambda: rerun(only))
    now = TrainConfig.result_version
    versions = f"train {now - 1} → {now}"
    assert f"(a training at step 2, with version of the results of {versions}: this release gives others" in text
    heard = Heard()
    settings = dataclasses.replace(settings_for(copied), execution=Execution(progress=heard), restart=True)
    anew = run_recipe(only, settings, data=small_data)
    assert [line for line in heard.lines if "begins anew" in line] == [
        "model: begins anew, in the place of what was made otherwise (a training at step 2, with version of the results of "
        f"{versions}: this release gives others for the same settings)"
    ]
    assert not any("goes on" in line for line in heard.lines)
    assert hashes(anew)["model"] == hashes(light_run)["model"]
    # once it was asked for, the training goes on without being asked for again
    monkeypatch.setattr(TrainConfig, "result_version", now - 1)
    shutil.rmtree(copied / "stages")
    state = torch.load(copied / "checkpoints" / "model" / "last.pt", weights_only=True)
    assert f'"result_version": {now}' in state["made_of"]
    torch.save({**state, "made_of": ""}, copied / "checkpoints" / "model" / "last.pt")
    assert "(a training at step 2, made by an earlier version, which did not record" in refused(
        copied, lambda: rerun(only)
    )


def test_a_setting_that_comes_with_a_release_changes_nothing_where_it_has_its_default(
    rerun: Rerun, copied: Path, light_recipe: Recipe
) -> None:
    """An artifact and a state that were written before there was `fit.mixing_probability`."""
    for name in ("model", "qat"):
        path = copied / "stages" / name
        artifact = read_artifact(path)
        record = artifact.lineage[-1]
        fit = {key: value for key, value in record.config["fit"].items() if key != "mixing_probability"}
        record = dataclasses.replace(record, config={**record.config, "fit": fit}, cache_key="of that release")
        write_manifest(dataclasses.replace(artifact, lineage=(*artifact.lineage[:-1], record)))
    assert rerun().executed == ()
    text = refused(copied, lambda: rerun(change_fit(light_recipe, "model", mixing_probability=0.5)))
    assert "model (fit.mixing_probability 1.0 → 0.5)" in text


@pytest.mark.parametrize("verb", ["validate", "quantize"])
def test_other_verbs_keep_the_report_of_a_run_and_respect_its_lock(
    verb: str, copied: Path, small_data: Data, hold_lock: Callable[[Path], object]
) -> None:
    model = copied / "stages" / "model"

    def act(restart: bool | None = None) -> object:
        execution = ExecutionOptions(device="cpu", restart=restart)
        data = DataOptions(small_data.name)
        if verb == "validate":
            return validate(model, out=copied, data=data, execution=execution)
        return quantize(model, calibration_method="minmax", out=copied, data=data, execution=execution)

    text = refused(copied, act)
    assert "holds the report of 'light' with 5 rows" in text or "ptq (calibration_method auto → minmax" in text
    assert len(read_report(copied).rows) == 5
    hold_lock(copied)
    assert "another process is working in" in refused(copied, lambda: act(restart=True))


def test_validate_replaces_its_own_report_of_the_same_artifact_alone(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    data, out = DataOptions(small_data.name), tmp_path / "out"
    student, teacher = (small_artifacts[name].path for name in ("student", "teacher"))
    first = validate(student, out=out, data=data)
    assert validate(student, out=out, data=data).rows[0].identity == first.rows[0].identity
    text = refused(out, lambda: validate(teacher, out=out, data=data))
    with pytest.raises(RecipeError, match="validate without out does not use restart: no report is written"):
        validate(student, data=data, execution=ExecutionOptions(restart=True))
    assert text == f"{out} holds the report of 'validate' on another artifact ({student}). {WAYS_OUT}"
    other = DataOptions(str(write_image_folder(tmp_path / "other", train=2, validation=1)))
    assert "on other validation images (data" in refused(out, lambda: validate(student, out=out, data=other))
    assert validate(teacher, out=out, data=data, execution=ExecutionOptions(restart=True)).rows[
        0
    ].identity.artifact == str(teacher)


@pytest.mark.parametrize(
    "name",
    ["report.md", "report.json", "model_card.md", "unreadable.txt", "stages/model/notes.txt", "scores/a", ".lock/x"],
)
def test_a_folder_with_files_of_others_is_no_folder_for_a_run(
    light_recipe: Recipe, small_data: Data, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    settings = dataclasses.replace(settings_for(tmp_path / "mine"), restart=True)
    text = refused(tmp_path / "mine", lambda: run_recipe(light_recipe, settings, data=small_data))
    assert "choose another --out" in text
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["stages", "scores", "flips", "checkpoints"])
def test_a_folder_of_a_run_that_is_none_is_found_before_any_work(rerun: Rerun, copied: Path, name: str) -> None:
    (copied / name).rename(copied.with_name("elsewhere"))
    (copied / name).symlink_to("/scratch/nowhere")
    assert refused(copied, rerun) == (
        f"{copied / name} leads to /scratch/nowhere, which is no folder here; a run writes there: mend that, or choose another "
        "--out."
    )
    (copied / name).unlink()
    (copied / name).symlink_to(copied.with_name("elsewhere"))  # on another disk
    assert rerun().executed == ()


def test_a_file_that_links_to_itself_is_made_again(rerun: Rerun, copied: Path) -> None:
    file = copied / "stages" / "minmax" / "model.safetensors"
    file.unlink()
    file.symlink_to(file.name)
    assert rerun().executed == ("minmax",)


def test_a_stage_never_deletes_what_is_not_its_own(rerun: Rerun, copied: Path) -> None:
    shutil.rmtree(copied / "stages" / "qat")
    (copied / "stages" / "qat").mkdir()
    (copied / "stages" / "qat" / "thesis.tex").write_text("mine")
    text = refused(copied, lambda: rerun(restart=True))
    assert text.startswith(
        f"{copied / 'stages' / 'qat' / 'thesis.tex'} was not written by this tool and would be deleted"
    )


def as_another_version(path: Path) -> None:
    """Write a record as version 0.1.0 would have: with another schema, and without a checksum."""
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps({**content, "schema": 1}))


@pytest.mark.parametrize("name", ["report.json", "stages/minmax/manifest.json"])
def test_a_damaged_record_is_not_taken_for_one_of_another_version(rerun: Rerun, copied: Path, name: str) -> None:
    text = (copied / name).read_text()
    (copied / name).write_text(text.replace('"schema": 2', '"schema": 3'))
    assert rerun().executed == (("minmax",) if "stages" in name else ())
    assert (copied / name).read_text().startswith('{\n "schema": 2')


def test_what_another_version_made_is_kept(rerun: Rerun, copied: Path) -> None:
    manifest = copied / "stages" / "minmax" / "manifest.json"
    as_another_version(manifest)
    assert "minmax (written by another version of this tool)" in refused(copied, rerun)
    report = copied / "report.json"
    as_another_version(report)
    shutil.rmtree(copied / "stages")
    shutil.rmtree(copied / "checkpoints")
    assert "holds a report that another version of this tool wrote" in refused(copied, rerun)


def test_ancestor_is_found_where_a_run_was_moved(copied: Path, light_run: RunResult, tmp_path: Path) -> None:
    origin = Path(light_run.report.rows[0].identity.artifact).parents[1]
    moved = copied.rename(tmp_path / "moved")
    artifact = read_artifact(moved / "stages" / "ptq")
    record = dataclasses.replace(artifact.lineage[-1], input_paths={"source": str(origin / "gone" / "model")})
    found = find_baseline(dataclasses.replace(artifact, lineage=(*artifact.lineage[:-1], record)))
    assert isinstance(found, Artifact)
    assert found.path == moved / "stages" / "model"
    assert STAGES[0] == "model"
