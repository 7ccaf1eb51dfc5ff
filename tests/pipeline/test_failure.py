"""A stage that fails, a process that died and a second process or thread leave nothing half done."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DataError, DeployError, OutputError
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.run_folder import claim
from convnext_deploy.reports.record import read_report
from convnext_deploy.stages.context import StageContext
from tests.pipeline.conftest import STAGES, Rerun, change_stage, hashes, settings_for


@contextmanager
def failing(config_type: type[StageConfig], error: BaseException) -> Iterator[None]:
    """Let a kind of stage write half of its files and raise."""

    def run(config: Any, source: Artifact | None, context: StageContext) -> Artifact:
        (context.output / "model.safetensors").write_bytes(b"half")
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{config_type.implementation}.run", run)
        yield


def stage_folders(out: Path) -> set[str]:
    return {path.name for path in (out / "stages").iterdir()}


@pytest.mark.parametrize(
    "error",
    [
        DeployError("broken"),
        pytest.param(RuntimeError("bug"), marks=pytest.mark.heavy),
        pytest.param(KeyboardInterrupt(), marks=pytest.mark.heavy),
    ],
    ids=repr,
)
def test_run_recipe_leaves_finished_stages_and_nothing_of_the_failed_one(
    light_recipe: Recipe, small_data: Data, tmp_path: Path, error: BaseException
) -> None:
    short = dataclasses.replace(light_recipe, stages=light_recipe.stages[:2])
    with failing(PTQConfig, error), pytest.raises(type(error)):
        run_recipe(short, settings_for(tmp_path), data=small_data)
    assert stage_folders(tmp_path) == {"model"}
    report = read_report(tmp_path)
    assert not report.complete
    assert [row.name for row in report.rows] == ["model"]
    assert run_recipe(short, settings_for(tmp_path), data=small_data).executed == ("ptq",)


@pytest.mark.heavy
def test_run_recipe_keeps_the_old_artifact_when_its_stage_fails_with_new_settings(
    rerun: Rerun, copied: Path, light_recipe: Recipe, light_run: RunResult
) -> None:
    with failing(PTQConfig, DeployError("broken")), pytest.raises(DeployError, match="broken"):
        rerun(change_stage(light_recipe, "ptq", calibration_images=9), restart=True)
    assert stage_folders(copied) == set(STAGES)
    assert read_artifact(copied / "stages" / "ptq").sha256 == hashes(light_run)["ptq"]
    assert rerun().executed == ()


@pytest.mark.parametrize(("config_type", "stage"), [(TrainConfig, "model"), (PTQConfig, "ptq")])
def test_run_recipe_leaves_no_complete_report_of_an_earlier_run_when_a_stage_fails(
    rerun: Rerun, copied: Path, config_type: type[StageConfig], stage: str
) -> None:
    assert read_report(copied).complete
    (copied / "stages" / stage / "manifest.json").unlink()
    with failing(config_type, DeployError("broken")), pytest.raises(DeployError, match="broken"):
        rerun()
    assert not read_report(copied).complete


def test_run_recipe_removes_what_a_killed_process_left(rerun: Rerun, copied: Path) -> None:
    (copied / "stages" / "ptq").rename(copied / "stages" / ".ptq.partial")
    (copied / "stages" / ".ptq.partial" / "manifest.json").unlink()
    (copied / ".report.json.partial").write_text("{")
    assert rerun().executed == ("ptq",)
    assert stage_folders(copied) == set(STAGES)
    assert not list(copied.rglob(".*.partial"))


def test_run_recipe_raises_when_a_stage_needs_images_and_there_are_none(light_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage 'model' needs images; give them with --data DIR"):
        run_recipe(light_recipe, settings_for(tmp_path))
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize("place", ["out", "out/deeper"])
def test_run_recipe_raises_when_the_output_folder_is_a_file(
    light_recipe: Recipe, small_data: Data, tmp_path: Path, place: str
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match=r"the output folder .* cannot be written"):
        run_recipe(light_recipe, settings_for(tmp_path / place), data=small_data)
    assert (tmp_path / "out").read_text() == "mine"


def test_run_recipe_raises_before_any_work_when_the_name_of_the_output_folder_is_no_text(
    light_recipe: Recipe, small_data: Data, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"the output folder .*/o\\udcff has a name that is no UTF-8 text"):
        run_recipe(light_recipe, settings_for(tmp_path / "o\udcff"), data=small_data)
    assert list(tmp_path.iterdir()) == []


def test_run_recipe_raises_when_another_process_works_in_the_folder(
    rerun: Rerun, copied: Path, hold_lock: Callable[[Path], subprocess.Popen[str]]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copied / "stages").rglob("*")}
    other = hold_lock(copied)
    with pytest.raises(
        OutputError,
        match=rf"another process is working in {copied}, or another thread of this one; wait for it, or choose another --out",
    ):
        rerun()
    assert {path: path.stat().st_mtime_ns for path in (copied / "stages").rglob("*")} == before
    other.kill()
    other.wait()
    assert rerun().executed == ()


def test_run_recipe_raises_when_another_thread_works_in_the_folder(rerun: Rerun, copied: Path) -> None:
    entered, left = Event(), Event()

    def work() -> None:
        with claim(copied):
            entered.set()
            left.wait(60)

    thread = Thread(target=work)
    thread.start()
    assert entered.wait(60)
    with pytest.raises(OutputError, match="or another thread of this one"):
        rerun()
    left.set()
    thread.join()
    assert rerun().executed == ()


def test_run_recipe_gives_the_lock_back_when_it_fails(rerun: Rerun, light_recipe: Recipe) -> None:
    with failing(PTQConfig, DeployError("broken")), pytest.raises(DeployError, match="broken"):
        rerun(change_stage(light_recipe, "ptq", calibration_images=9), restart=True)
    result: RunResult = rerun()
    assert result.executed == ()
