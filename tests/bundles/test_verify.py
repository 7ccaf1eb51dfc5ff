"""`verify.py` alone, as on a device: damage is found, what can be run is run, and what cannot be is said."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from convnext_deploy.api.verify_bundle import verify_bundle
from convnext_deploy.bundles import device
from convnext_deploy.bundles.device.verify import Check, hash_file, verify
from convnext_deploy.bundles.files import PROGRAMS
from tests.bundles.conftest import read_record
from tests.bundles.graphs import FP32, INT8

PACKAGES = ("torch", "torchvision", "onnx", "convnext_deploy", "PIL", "scipy", "click")
_BLOCKED = """
import runpy, sys
class Blocking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Blocking())
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(
    folder: Path,
    *arguments: str,
    program: str = "verify.py",
    without: tuple[str, ...] = (),
    having: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program of a bundle in an interpreter without this package and the others that a device lacks."""
    code = _BLOCKED.format(blocked={*PACKAGES, *without} - {*having}, arguments=[str(folder / program), *arguments])
    command = [sys.executable, "-I", "-c", code]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # the same outcome where there is a GPU
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=folder.parent, env=environment
    )


def seal(folder: Path) -> None:
    """Write the checksums of a bundle anew, as if it had been made so."""
    names = sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"
    )
    (folder / "SHA256SUMS").write_text("".join(f"{hash_file(folder / name)}  {name}\n" for name in names))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of a bundle and seal it."""
    record = read_record(folder)
    change(record)
    (folder / "bundle.json").write_text(json.dumps(record))
    seal(folder)


def by_name(checks: list[Check]) -> dict[str, tuple[str, str]]:
    return {check.what: (check.status, check.detail) for check in checks}


def test_verify_runs_every_model_without_this_package(made: Path) -> None:
    done = run_alone(made)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("passed   SHA256SUMS: ")
    same = "error 0.0e+00 of {} allowed, 5 of 5 images in the same class"
    assert lines[1:3] == [
        f"passed   onnx/{INT8}.onnx: {same.format('3.0e-02')}",
        f"passed   onnx/{FP32}.onnx: {same.format('1.0e-04')}",
    ]
    for line, gpu in zip(lines[3:5], ("sm86", "sm89"), strict=True):
        assert re.fullmatch(rf"not run  engines/{INT8}\.{gpu}\.plan: (no|the) NVIDIA driver.*", line)
    assert lines[5:] == [f"not run  built/{name}.plan: not built yet: bash build_on_device.sh" for name in (INT8, FP32)]


def test_verify_leaves_the_folder_as_it_was(copied: Path) -> None:
    before = sorted(copied.rglob("*"))
    run_alone(copied)
    assert sorted(copied.rglob("*")) == before


@pytest.mark.parametrize(
    ("without", "what"), [("onnxruntime", f"onnx/{INT8}.onnx: onnxruntime"), ("numpy", "models: numpy")]
)
def test_verify_says_what_it_could_not_run_for_want_of_a_package(made: Path, without: str, what: str) -> None:
    done = run_alone(made, without=(without,))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"not run  {what} cannot be loaded (No module named '{without}')" in done.stdout
    assert "passed   SHA256SUMS" in done.stdout


def test_verify_fails_where_what_is_required_was_not_run(made: Path) -> None:
    done = run_alone(made, "--require", "engine", "--require", "onnx")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "failed   no engine could be run here, and one was required"
    assert run_alone(made, "--require", "onnx").returncode == 0


def test_verify_prints_json(made: Path) -> None:
    done = run_alone(made, "--json", "--require", "engine", str(made))
    record = json.loads(done.stdout)
    assert (done.returncode, record["required_and_not_run"]) == (1, ["engine"])
    assert [check["status"] for check in record["checks"]] == ["passed"] * 3 + ["not run"] * 4


@pytest.mark.parametrize("arguments", [("--nonsense",), ("--require", "gpu"), ("one", "two")])
def test_wrong_usage_ends_with_2(made: Path, arguments: tuple[str, ...]) -> None:
    done = run_alone(made, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda b: (b / "onnx" / f"{FP32}.onnx").write_bytes(b""), f"onnx/{FP32}.onnx was altered"),
        (lambda b: (b / "golden" / "pixels.npy").unlink(), "golden/pixels.npy is missing"),
        (lambda b: (b / "engines" / "other.plan").write_bytes(b"x"), "engines/other.plan does not belong here"),
        (lambda b: (b / "SHA256SUMS").write_text(""), "README.md does not belong here.*and 28 more"),
        (lambda b: (b / "SHA256SUMS").unlink(), "SHA256SUMS: cannot be read"),
        (lambda b: (b / "SHA256SUMS").write_bytes(b"\xff\xfe"), "SHA256SUMS: cannot be read"),
    ],
)
def test_damage_is_found_and_nothing_of_it_is_run(copied: Path, spoil: Callable[[Path], object], text: str) -> None:
    spoil(copied)
    done = run_alone(copied)
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("failed ")
    assert re.search(text, line)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda r: r.update(models=[], engines=[]), "lists no model; does not list engines/"),
        (lambda r: r["models"].pop(), r"does not list onnx/\S+; make"),
        (lambda r: r["engines"].clear(), "does not list engines/"),
        (lambda r: r["models"][0].update(file="onnx/other.onnx"), "lists onnx/other.onnx, which is not there"),
        (lambda r: r["models"][0].update(outputs=[]), "has no answers of "),
        (lambda r: r["golden"].update(images=0), "has no golden images"),
    ],
)
def test_what_would_prove_nothing_fails(copied: Path, spoil: Callable[[dict[str, Any]], object], text: str) -> None:
    rewrite(copied, spoil)
    result = verify_bundle(copied)
    assert not result.passed
    files, contents = result.checks
    assert (files.status, contents.what, contents.status) == ("passed", "bundle.json", "failed")
    assert re.search(text, contents.detail)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "is not a bundle: it has no bundle.json"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"schema": 2}', "has the schema 2; this program reads 1"),
        ('{"schema": 1}', "does not say what this program expects"),
    ],
)
def test_what_is_no_bundle_is_one_line(copied: Path, content: str | None, text: str) -> None:
    if content is None:
        (copied / "bundle.json").unlink()
    else:
        (copied / "bundle.json").write_text(content)
        seal(copied)
    done = run_alone(copied)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert text in line


def test_what_building_leaves_belongs_there(copied: Path) -> None:
    for name in (
        "built/timing.cache",
        "built/x.log",
        f"triton/tensorrt/{INT8}/1/model.plan",
        "__pycache__/answers.pyc",
    ):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text("x")
    assert by_name(verify(copied))["SHA256SUMS"][0] == "passed"


def test_an_answer_that_differs_fails(copied: Path) -> None:
    path = copied / "golden" / f"{FP32}.0.npy"
    golden = np.load(path)
    np.save(path, golden * np.float32(1.001))
    seal(copied)
    status, detail = by_name(verify(copied))[f"onnx/{FP32}.onnx"]
    assert status == "failed"
    assert re.match(r"error [12]\.\de-03 of 1\.0e-04 allowed, 5 of 5", detail)
    assert run_alone(copied).returncode == 1


def test_another_model_in_the_place_of_one_fails(copied: Path) -> None:
    shutil.copyfile(copied / "onnx" / f"{FP32}.onnx", copied / "onnx" / f"{INT8}.onnx")
    seal(copied)
    assert by_name(verify(copied))[f"onnx/{INT8}.onnx"][0] == "failed"


def test_another_preprocessing_fails(copied: Path) -> None:
    rewrite(copied, lambda record: record["preprocess"].update(mean=[0.5, 0.5, 0.5]))
    found = by_name(verify(copied))
    assert found[f"onnx/{INT8}.onnx"][0] == found[f"onnx/{FP32}.onnx"][0] == "failed"


def test_a_file_that_onnxruntime_refuses_fails_in_one_line(copied: Path) -> None:
    (copied / "onnx" / f"{INT8}.onnx").write_bytes(b"no graph at all")
    seal(copied)
    status, detail = by_name(verify(copied))[f"onnx/{INT8}.onnx"]
    assert status == "failed"
    assert detail.startswith(f"onnxruntime {onnxruntime.__version__} cannot run it (")
    assert "\n" not in detail


@pytest.mark.parametrize(
    "arguments",
    [{"batch": 1}, {"batch": 4}, {"batch": 9}, {"pixels": True}, {"top_k": 2}, {"top_k": 1, "pixels": True}],
)
def test_every_interface_is_run(make: Callable[..., Path], arguments: dict[str, Any]) -> None:
    found = by_name(verify(make(**arguments)))[f"onnx/{FP32}.onnx"]
    assert found == ("passed", "error 0.0e+00 of 1.0e-04 allowed, 5 of 5 images in the same class")


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name.endswith(".py")])
def test_program_is_python_of_the_oldest_devices(program: str) -> None:
    text = PROGRAMS[program].read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not [name for name in imported if name and name.startswith("convnext_deploy")]
    outside = {name.split(".")[0] for name in imported if name} - {
        *sys.stdlib_module_names,
        "numpy",
        "onnxruntime",
        "PIL",
    }
    assert not outside
    assert "from __future__ import annotations" in text, "annotations such as `str | None` are not evaluated then"


def test_the_bundle_has_these_programs(made: Path) -> None:
    for name in PROGRAMS:
        assert (made / name).read_bytes() == PROGRAMS[name].read_bytes()
    present = {path.name for path in Path(device.__path__[0]).iterdir() if path.is_file()}
    assert present - {"__init__.py"} == {*PROGRAMS} - {"pixels.py", "intervals.py"}
