"""The same commands under `torchrun`: one report, one error line, and a training that goes on after a process died."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from convnext_deploy.api.options import DataOptions
from convnext_deploy.api.validate import validate
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.cli import main
from convnext_deploy.data.datasets import Data
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint
from convnext_deploy.system import distributed
from tests.distributed.launch import launched, run
from tests.weights import write_weights

RECIPE = """
name = "joint"
seed = 1
[[stages]]
kind = "train"
name = "teacher"
[stages.model]
name = "test_convnext"
image_size = 32
[stages.fit]
epochs = {epochs}
batch_size = 12
base_learning_rate = 0.256
warmup_epochs = 0
drop_path_rate = 0.3
[[stages]]
kind = "distill"
name = "student"
teacher = "teacher"
teacher_cache = true
[stages.model]
name = "test_convnext"
image_size = 32
[stages.fit]
epochs = 2
batch_size = 12
base_learning_rate = 0.256
warmup_epochs = 0
drop_path_rate = 0.3
augmentation_epochs = 1
[[stages]]
kind = "ptq"
calibration_images = 12
"""


def write_recipe(folder: Path, epochs: int = 20) -> Path:
    path = folder / "joint.toml"
    path.write_text(RECIPE.format(epochs=epochs))
    return path


def arguments(recipe: Path, data: Path, out: Path) -> list[str]:
    command = ["-m", "convnext_deploy", "run", str(recipe), "--data", str(data), "--out", str(out)]
    return [*command, "--device", "cpu", "--workers", "0"]


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(text) for text in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes through Linux's /proc")
def test_run_goes_on_after_a_process_died(image_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    code, output, errors = run(arguments(recipe, image_folder, tmp_path / "whole"))
    assert code == 0, errors
    assert output.count("joint: ") == 1  # one table
    assert errors.count("teacher: done") == 1  # one progress display
    killed = tmp_path / "killed"
    with launched(arguments(recipe, image_folder, killed)) as process:
        state = killed / "checkpoints" / "teacher" / "last.pt"
        while not state.exists() and process.poll() is None:
            time.sleep(0.02)
        os.kill(children(process.pid)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
        assert process.returncode != 0
        assert "the same command goes on from the last saved state" in errors.replace("The", "the")
    assert not (killed / "stages" / "teacher").exists()
    code, _, errors = run(arguments(recipe, image_folder, killed))
    assert code == 0, errors
    assert "teacher: goes on at step" in errors
    for stage in ("teacher", "student", "ptq"):
        states = [
            load_checkpoint(out / "stages" / stage / "model.safetensors").state for out in (killed, tmp_path / "whole")
        ]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), stage
    assert sorted(path.name for path in (killed / "stages").iterdir()) == ["ptq", "student", "teacher"]


@pytest.mark.heavy
def test_run_says_an_error_once(image_folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("batch_size = 12", "batch_size = 11", 1))
    code, output, errors = run(arguments(recipe, image_folder, tmp_path / "out"))
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert (code, output) == (1, "")
    assert lines == [
        "error: a batch of 11 images does not divide among 2 processes; use a batch_size that is a multiple of 2 and at most 36."
    ]


@pytest.mark.slow
def test_validate_scores_on_two_processes_as_on_one(image_folder: Path, small_data: Data, tmp_path: Path) -> None:
    """And what is for one process waits for no other."""
    spec, names = ModelSpec("test_convnext", len(small_data.class_names)), small_data.class_names
    weights = write_weights(tmp_path / "weights.safetensors", spec, names, default_preprocess(32))
    expected = validate(weights, data=DataOptions(data=image_folder)).rows[0].accuracy
    arguments = ["-m", "convnext_deploy", "validate", str(weights), "--data", str(image_folder), "--json"]
    code, output, errors = run([*arguments, "--device", "cpu", "--workers", "0"])
    assert code == 0, errors
    (found,) = json.loads(output)["rows"]
    assert expected is not None
    assert (found["accuracy"]["correct"], found["accuracy"]["total"]) == (expected.correct, expected.total)
    image = next(image_folder.rglob("*.png"))
    code, output, errors = run(["-m", "convnext_deploy", "predict", str(weights), str(image), "--quiet"])
    assert code == 0, errors
    assert output.count(image.name) == 1


def test_other_processes_leave_what_one_can_do_to_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["convnext-deploy", "models"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        main()
    assert "tiny" in capsys.readouterr().out
    assert distributed.launched() == distributed.World()  # and waits for nobody
