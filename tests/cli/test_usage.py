"""Wrong usage and missing packages or devices: exit code 2 or 1, one clear line, in this process and in its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.cli import group
from convnext_deploy.cli.values import Numbers
from convnext_deploy.exporters.tensorrt import bindings as tensorrt_releases
from convnext_deploy.system import execution
from tests.cli.bad_input import Place
from tests.cli.conftest import assert_nothing_half_written, call


@pytest.fixture
def place(tmp_path: Path, image_folder: Path, small_artifacts: dict[str, Artifact]) -> Place:
    return Place(tmp_path, image_folder, small_artifacts)


def test_device_cuda_without_a_gpu_ends_with_one_clear_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "cuda_driver_error", lambda: "no GPU")
    outcome = call(*place.train(place.images), "--device", "cuda")
    assert (outcome.code, outcome.err) == (
        1,
        "error: --device cuda was asked for, but here is no GPU; use --device cpu.\n",
    )


def test_negative_seed_is_refused_by_name(place: Place) -> None:
    outcome = call(*place.train(place.images), "--seed", "-1")
    assert outcome.code in (1, 2)
    assert "seed" in outcome.err.splitlines()[-1]
    assert_nothing_half_written(place.path)


@pytest.mark.parametrize(
    ("module", "form", "expected"),
    [
        ("tensorrt_rtx", "tensorrt-rtx", "tensorrt-rtx is not installed; pip install 'tensorrt_rtx"),
        ("tensorrt", "tensorrt", "tensorrt is not installed; pip install 'convnext_deploy[tensorrt]'"),
    ],
)
def test_missing_package_is_named_with_the_line_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, module: str, form: str, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(tensorrt_releases, "cuda_driver_error", lambda: None)
    source = place.artifacts["onnx-int8"].path
    outcome = call("export", source, "--format", form, "--data", place.images, "--out", place.out, "--workers", "0")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"error: {expected}")
    assert_nothing_half_written(place.path)


USAGE_CASES = [
    (("nosuch",), "No such command 'nosuch'; convnext-deploy --help lists them."),
    (("quantise", "x"), "No such command 'quantise'; did you mean 'quantize'?"),
    (("benchmark",), "No such command 'benchmark'; did you mean 'bench'?"),
    (("train", "--modle", "atto"), "No such option '--modle'; did you mean '--model'?"),
    (("quantize", "x", "--max-drops", "1"), "No such option '--max-drops'; did you mean '--max-drop'?"),
    (("distill", "--max-drop", "1"), "No such option '--max-drop' here; quantize, compress, export, validate have it."),
    (("train", "--zip"), "No such option '--zip' here; bundle has it."),
    (("models", "--nosuch"), "No such option '--nosuch'; convnext-deploy models --help lists them."),
    (("train",), "give --model, or what to start from with --checkpoint or --weights"),
    (("distill", "--teacher", "base"), "give --student, or its weights"),
    (("distill", "--student", "base"), "give --teacher, or its weights"),
    (("quantize",), "Missing argument 'CHECKPOINT'"),
    (("train", "--model", "atto", "--nosuch"), "No such option '--nosuch'"),
    (("distill", "--teacher", "base", "--student", "tiny", "--max-drop", "0.2"), "No such option '--max-drop'"),
    (("run", "x.toml", "--seed", "1"), "No such option '--seed'"),
    (("export", "x", "--format", "tflite"), "Invalid value for '--format'"),
    (("quantize", "x", "--method", "awq"), "Invalid value for '--method'"),
    (("train", "--model", "atto", "--device", "tpu"), "Invalid value for '--device'"),
    *(
        (("train", "--model", "atto", flag, value), f"Invalid value for '{flag}'")
        for flag, value in (
            ("--batch-size", "0"),
            ("--batch-size", "-8"),
            ("--batch-size", "many"),
            ("--epochs", "0"),
            ("--image-size", "0"),
            ("--patch-size", "3"),
            ("--crop-pct", "0"),
            ("--crop-pct", "1.5"),
            ("--crop-mode", "pad"),
            ("--interpolation", "cubic"),
            ("--mean", "0.5;0.5"),
            ("--workers", "-1"),
            ("--base-learning-rate", "0"),
            ("--flip-probability", "2"),
        )
    ),
    (("validate", "x", "--batch-size", "0"), "Invalid value for '--batch-size'"),
    (("quantize", "x", "--calibration-images", "0"), "Invalid value for '--calibration-images'"),
    (("quantize", "x", "--max-drop", "-1"), "Invalid value for '--max-drop'"),
    (("export", "x", "--max-batch-size", "0"), "Invalid value for '--max-batch-size'"),
    (("distill", "--teacher", "a", "--student", "b", "--temperature", "0"), "Invalid value for '--temperature'"),
]


@pytest.mark.parametrize(("arguments", "expected"), USAGE_CASES, ids=[" ".join(case[0]) for case in USAGE_CASES])
def test_wrong_usage_exits_with_2_and_names_the_flag(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith(f"Error: {expected}")
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(group, list(arguments))
    assert result.exit_code == 2
    assert expected in result.output


def test_mean_is_one_number_or_several_with_commas() -> None:
    assert [Numbers().convert(text, None, None) for text in ("0.5", "0.485,0.456,1")] == [(0.5,), (0.485, 0.456, 1.0)]


def python_m(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convnext_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.heavy
def test_process_exits_with_1_and_one_line_when_the_input_is_wrong(tmp_path: Path) -> None:
    done = python_m("run", tmp_path / "none.toml")
    assert (done.returncode, done.stdout) == (1, "")
    errors = done.stderr.removeprefix("run: loading libraries\n")  # which a busy machine takes long for
    assert errors.startswith("error: there is no recipe ")
    assert errors.count("\n") == 1


@pytest.mark.heavy
def test_process_exits_with_2_when_the_usage_is_wrong() -> None:
    done = python_m("train", "--model", "atto", "--batch-size", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "Error: Invalid value for '--batch-size': 0 is not in the range x>=1."


@pytest.mark.heavy
def test_process_names_an_unreadable_image_that_another_process_decodes(place: Place) -> None:
    data = place.copy_images()
    (data / "val" / "dog" / "3.png").write_text("this is no image")
    done = python_m("validate", place.artifacts["student"].path, "--data", data, "--workers", "2", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "val/dog/3.png cannot be read as an image" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_working_folder_that_was_removed_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    outcome = call("models")
    assert outcome.code == 1
    assert outcome.err.startswith("error: the folder that this command was started in cannot be found (No such file")
    assert len(outcome.err.splitlines()) == 1
    assert call("--help").code == 0
