"""What can be wrong on a device with `trtexec` is one clear line, and no half engine is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundles.graphs import FP32, INT8
from tests.bundles.trtexec_device import Device, building, files_in
from tests.bundles.trtexec_stand_in import RELEASES


def error_of(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("release", RELEASES)
def test_a_build_that_fails_leaves_the_log_and_no_engine(place: Callable[..., Device], release: str) -> None:
    machine = place(release, fails=True)
    done = machine.run()
    assert done.returncode == 1
    assert "could not find any implementation for node MatMul_7" in done.stderr
    log = machine.bundle / "built" / f"{INT8}.log"
    assert error_of(done.stderr) == f"error: trtexec could not build {INT8}; all it said is in {log}"
    assert "MatMul_7" in log.read_text()
    assert files_in(machine.bundle / "built") == [log.name]


def test_a_build_that_fails_keeps_the_engine_of_before(place: Callable[..., Device]) -> None:
    machine = place(fails=True)
    plan = machine.bundle / "built" / f"{INT8}.plan"
    plan.parent.mkdir()
    plan.write_bytes(b"old")
    assert machine.run().returncode == 1
    assert plan.read_bytes() == b"old"


def test_an_engine_that_was_not_written_is_noticed(place: Callable[..., Device]) -> None:
    machine = place(writes=False)
    done = machine.run()
    assert done.returncode == 1
    assert error_of(done.stderr).startswith("error: trtexec ended well and wrote no engine; ")
    assert files_in(machine.bundle / "built") == [f"{INT8}.log"]


def test_without_trtexec_the_other_program_is_named(place: Callable[..., Device]) -> None:
    machine = place(None)
    done = machine.run()
    if done.returncode == 0 or "TensorRT" in done.stderr.replace("build_engine", ""):
        pytest.skip("this machine has a trtexec of its own")
    assert done.returncode == 1
    assert error_of(done.stderr).endswith(f"set TRTEXEC, or use: python3 '{machine.bundle}/build_engine.py'")


def test_trtexec_is_taken_from_the_environment_first(place: Callable[..., Device], tmp_path: Path) -> None:
    machine = place()
    other = tmp_path / "other trtexec"
    other.write_text(machine.trtexec.path.read_text().replace("v110400", "v100300"))  # type: ignore[union-attr]
    other.chmod(0o755)
    done = machine.run("--dry-run", TRTEXEC=str(other))
    assert done.returncode == 0
    assert "with TensorRT 10.3;" in done.stdout
    assert "--stronglyTyped" in done.stdout
    missing = machine.run(TRTEXEC="/nowhere/trtexec")
    assert (missing.returncode, missing.stderr) == (
        1,
        "error: TRTEXEC is '/nowhere/trtexec', which is not a program.\n",
    )


@pytest.mark.parametrize(
    ("banner", "version"), [("v8502", "8.5"), ("v8601", "8.6"), ("v100200", "10.2"), ("v100001", "10.0")]
)
def test_a_release_that_is_too_old_is_refused(place: Callable[..., Device], banner: str, version: str) -> None:
    machine = place("10.3.0", banner=banner)
    done = machine.run()
    assert done.returncode == 1
    assert error_of(done.stderr).endswith(f"is of TensorRT {version}; 10.3 (JetPack 6.1) or newer is needed.")
    assert machine.calls() == []


@pytest.mark.parametrize(
    ("banner", "types"), [("v100300", ["--stronglyTyped"]), ("v101601", ["--stronglyTyped"]), ("v110402", [])]
)
def test_the_banner_tells_the_release(place: Callable[..., Device], banner: str, types: list[str]) -> None:
    machine = place("10.3.0", banner=banner)
    assert machine.run().returncode == 0
    assert machine.calls() == [building(machine.bundle, types=tuple(types))]


def test_a_release_after_those_that_are_known_is_said(place: Callable[..., Device]) -> None:
    machine = place("11.4.0", banner="v120100")
    done = machine.run()
    assert done.returncode == 0
    assert done.stderr == "note: TensorRT 12.1 is newer than this script; using the options of 11.\n"


def test_a_release_that_is_not_told_is_asked_of_the_packages_and_then_of_the_user(place: Callable[..., Device]) -> None:
    machine = place("10.3.0", banner="of no version")
    folder = machine.trtexec.path.parent  # type: ignore[union-attr]
    for name in ("dpkg-query", "python3"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    done = machine.run()
    assert done.returncode == 1
    assert error_of(done.stderr).endswith("cannot be found out; set TENSORRT_VERSION, such as 10.3.")
    assert machine.run("--dry-run", TENSORRT_VERSION="10.16").returncode == 0
    assert machine.run("--dry-run", TENSORRT_VERSION="newest").returncode == 1
    (folder / "python3").write_text("#!/bin/sh\necho 10.7.0.23\n")
    assert "with TensorRT 10.7;" in machine.run("--dry-run").stdout
    (folder / "dpkg-query").write_text("#!/bin/sh\necho 10.3.0.30-1+cuda12.5\n")
    assert "with TensorRT 10.3;" in machine.run("--dry-run").stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--what",), "unknown option '--what'; see --help."),
        (("--batch",), "--batch needs a value; see --help."),
        (("--batch", "0"), "--batch is '0'; expected a number from 1 to 65536."),
        (("--batch", "two"), "--batch is 'two'; expected"),
        (("--max-batch", "1e3"), "--max-batch is '1e3'; expected"),
        (("--batch", "08"), "--batch is '08'; expected"),
        (("--optimization-level", "6"), "--optimization-level is '6'; expected a number from 0 to 5."),
        (("--workspace", "-1"), "--workspace is '-1'; expected"),
        (("--batch", "8", "--max-batch", "4"), "--batch 8 is larger than --max-batch 4."),
        (("--model", FP32, "--batch", "2"), f"onnx/{FP32}.onnx takes batches of 4 and no others."),
        (("--model", INT8, "--all"), "--model, --precision and --all exclude each other."),
        (("--model", INT8, "--precision", "int8"), "--model, --precision and --all exclude each other."),
        (("--model", "x"), f"no model 'x' in this bundle that TensorRT can build; those that can: {INT8} {FP32}"),
        (("--precision", "fp16"), "no model 'fp16' in this bundle"),
    ],
)
def test_wrong_usage_ends_with_2_and_builds_nothing(
    place: Callable[..., Device], arguments: tuple[str, ...], text: str
) -> None:
    machine = place()
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert error_of(done.stderr).startswith(f"error: {text}")
    assert machine.calls() == []


def test_help_explains_every_option(place: Callable[..., Device]) -> None:
    done = place(None).run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        "--model",
        "--precision",
        "--all",
        "--batch",
        "--max-batch",
        "--weakly-typed",
        "--dry-run",
        "TRTEXEC",
    ):
        assert option in done.stdout


def test_half_a_bundle_is_said(place: Callable[..., Device]) -> None:
    machine = place()
    (machine.bundle / "models.tsv").unlink()
    done = machine.run()
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {machine.bundle}/models.tsv is missing; copy the whole bundle.\n",
    )


def test_a_folder_that_cannot_be_made_is_said(place: Callable[..., Device], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    machine = place()
    done = machine.run("--out", str(tmp_path / "file" / "built"))
    assert done.returncode == 1
    assert error_of(done.stderr).endswith("cannot be made; give a folder with --out.")


def test_a_build_that_is_interrupted_leaves_no_half_engine(place: Callable[..., Device]) -> None:
    machine = place()
    program = machine.trtexec.path  # type: ignore[union-attr]
    stop = 'import os, signal\nif "saveEngine" in given:\n    os.kill(os.getppid(), signal.SIGTERM)\nif "loadEngine" in given'
    program.write_text(program.read_text().replace('if "loadEngine" in given', stop))
    done = machine.run()
    assert done.returncode == 143
    assert not [name for name in files_in(machine.bundle / "built") if "plan" in name]


@pytest.mark.parametrize("name", [f"onnx/{INT8}.onnx", "models.tsv", "SHA256SUMS"])
def test_an_altered_bundle_is_not_built_from(name: str, place: Callable[..., Device]) -> None:
    machine = place()
    file = machine.bundle / name
    content = bytearray(file.read_bytes())
    content[
        content.index(b"row_sum" if name.startswith("onnx") else b"models.tsv" if name == "SHA256SUMS" else b"int8")
    ] ^= 1
    file.write_bytes(content)
    done = machine.run()
    altered = "models.tsv" if name == "SHA256SUMS" else name
    assert (done.returncode, error_of(done.stderr)) == (
        1,
        f"error: {machine.bundle}/{altered} was altered: it is not what SHA256SUMS says; copy the bundle again.",
    )
