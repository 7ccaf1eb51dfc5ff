"""A bundle of trained, quantized and exported networks is verified where only numpy and onnxruntime are installed."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from tests.bundles.conftest import read_record
from tests.bundles.test_verify import run_alone


def test_a_bundle_of_a_run_is_verified_without_this_package(real: Path) -> None:
    done = run_alone(real, "--require", "onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[:8].strip() for line in done.stdout.splitlines()] == ["passed"] * 3 + ["not run"] * 3


def test_a_bundle_of_a_run_tells_what_was_measured_and_nothing_of_this_machine(
    real: Path, small_artifacts: dict[str, Artifact], image_folder: Path
) -> None:
    int8, fp32 = read_record(real)["models"]
    assert (int8["precision"], fp32["precision"]) == ("int8", "fp32")
    assert int8["measured"]["total"] == fp32["measured"]["total"] == 18
    assert int8["measured"]["top1_drop_pp"] is not None
    assert [step["kind"] for step in fp32["history"]] == ["distill", "onnx"]
    card = (real / "README.md").read_text(encoding="utf-8")
    assert f"Top-1 was measured on 18 validation images of '{image_folder.name}'" in card
    assert f"| {100 * int8['measured']['top1']:.2f} |" in card
    private = [str(image_folder.parent).encode(), str(small_artifacts["onnx-int8"].path.parents[1]).encode()]
    for path in real.rglob("*"):
        if path.is_file():
            assert not [text for text in private if text in path.read_bytes()], path


@pytest.mark.slow
def test_a_bundle_is_verified_in_an_environment_with_numpy_and_onnxruntime_alone(real: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "onnxruntime"], check=True, timeout=600)
    command = [str(python), str(real / "verify.py"), "--require", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("passed   onnx/") == 2
    absent = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert absent.returncode != 0
