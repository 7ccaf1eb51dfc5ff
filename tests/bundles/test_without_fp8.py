"""On a GPU without FP8, as Jetson Orin, its models are left out in a line; an older ONNX Runtime opens their files all the same."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.contents import collect
from convnext_deploy.bundles.device import tensorrt_device
from convnext_deploy.bundles.device.choose_engine import gather
from convnext_deploy.bundles.device.verify import verify
from convnext_deploy.bundles.golden import compute_outputs
from convnext_deploy.runners import open_runner
from tests.bundles.gpu import Driver
from tests.bundles.graphs import FP32, INT8
from tests.bundles.test_build_engine import Device as Builder
from tests.bundles.test_build_on_device import TEN
from tests.bundles.test_verify import rewrite, seal
from tests.bundles.trtexec_device import Device, building
from tests.exporters.tensorrt_stand_in import RELEASES, Script


def call_fp8(bundle: Path) -> None:
    """Let the FP32 model of a bundle say that it is of FP8."""
    rewrite(bundle, lambda record: record["models"][1].update(precision="fp8-fp16"))
    table = bundle / "models.tsv"
    table.write_text(table.read_text().replace("\tfp32\t", "\tfp8-fp16\t"))
    seal(bundle)


def says(folder: Path, name: str, text: str) -> None:
    """Write a program that prints a text."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("driver", "board", "left_out"),
    [
        ("8.7", "", "SM87"),
        ("[N/A]", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "SM87"),
        ("8.6", "", "SM86"),
        ("8.9", "", None),
        ("11.0", "NVIDIA Jetson AGX Thor Developer Kit", None),
        ("[N/A]", "NVIDIA Jetson AGX Thor Developer Kit", None),
    ],
)
def test_trtexec_builds_fp8_only_where_the_gpu_computes_it(
    place: Callable[..., Device], tmp_path: Path, driver: str, board: str, left_out: str | None
) -> None:
    machine = place()
    assert machine.trtexec is not None
    call_fp8(machine.bundle)
    says(machine.trtexec.path.parent, "nvidia-smi", driver)
    (tmp_path / "model").write_text(f"{board}\0")
    done = machine.run("--all", "--bench", DEVICE_TREE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    built = [call[0].rsplit("/", 1)[1].removesuffix(".onnx") for call in machine.calls() if "--onnx" in call[0]]
    timed = [call[0].rsplit("/", 1)[1].removesuffix(".plan") for call in machine.calls() if "--load" in call[0]]
    assert built == timed == ([INT8] if left_out else [INT8, FP32])
    why = f"{FP32} is left out: this GPU is {left_out}, and FP8 begins with SM89"
    assert done.stderr == (f"note: {why}\n" if left_out else "")
    alone = machine.run("--precision", "fp8-fp16", DEVICE_TREE=str(tmp_path))
    assert (alone.returncode, alone.stderr) == ((1, f"error: {why}; take another model.\n") if left_out else (0, ""))


@pytest.mark.parametrize("release", TEN)
def test_ten_chooses_fp8_too_when_asked_to(place: Callable[..., Device], release: str) -> None:
    machine = place(release)
    assert machine.trtexec is not None
    call_fp8(machine.bundle)
    says(machine.trtexec.path.parent, "nvidia-smi", "8.9")
    done = machine.run("--weakly-typed", "--model", FP32)
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [building(machine.bundle, FP32, shapes=None, types=("--fp16", "--fp8"))]


@pytest.mark.heavy
def test_the_device_chooses_among_the_others(place: Callable[..., Device], tmp_path: Path) -> None:
    machine = place()
    assert machine.trtexec is not None
    call_fp8(machine.bundle)
    says(machine.trtexec.path.parent, "nvidia-smi", "8.7")
    path = f"{machine.trtexec.path.parent}:{Path(sys.executable).parent}:/usr/bin:/bin"
    (machine.bundle / "built").mkdir()
    (machine.bundle / "built" / f"{FP32}.plan").write_bytes(b"an engine of another device")
    done = machine.run("--choose", PATH=path, CUDA_VISIBLE_DEVICES="")
    assert f"note: {FP32} is left out: this GPU is SM87" in done.stderr
    assert not (machine.bundle / "built" / f"{FP32}.plan").exists()
    assert [call[0].rsplit("/", 1)[1] for call in machine.calls()] == [f"{INT8}.onnx", *2 * [f"{INT8}.plan"]]


@pytest.mark.parametrize(("capability", "able"), [((8, 7), False), ((8, 9), True), ((11, 0), True)])
def test_bindings_build_fp8_only_where_the_gpu_computes_it(
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    capability: tuple[int, int],
    able: bool,
) -> None:
    call_fp8(copied)
    builder = Builder(copied, RELEASES[-1], Script(plan=b"built here"), monkeypatch)
    monkeypatch.setattr(tensorrt_device, "open_driver", lambda: Driver(capability))
    (built := copied / "built").mkdir()
    (built / f"{FP32}.plan").write_bytes(b"an engine of another device")
    (_, fp8) = gather(copied, built, None, None)["engines"]
    why = "this GPU is SM87, and FP8 begins with SM89"
    assert (fp8["obstacle"] == why) != able
    (built / f"{FP32}.plan").unlink()
    assert builder.run("--precision", "fp8-fp16") == (0 if able else 1)
    assert (built / f"{FP32}.plan").exists() == able
    assert (f"error: {FP32} is left out: {why}; take another model." in capsys.readouterr().err) != able
    assert builder.run("--all") == 0
    assert (f"note: {FP32} is left out: {why}" in capsys.readouterr().out) != able
    assert (built / f"{INT8}.plan").exists()


def test_fp8_files_open_on_onnxruntimes_that_move_fp8_values(
    copied: Path, graphs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would move them through a Transpose, which takes none: ONNX Runtime 1.31 and before, which are not here."""
    opened: list[tuple[str, bool]] = []
    session = onnxruntime.InferenceSession

    def record(path: str, options: onnxruntime.SessionOptions, **others: Any) -> onnxruntime.InferenceSession:
        entry = "session.disable_quant_qdq"
        opened.append((Path(path).name, "1" in str(try_entry(options, entry))))
        return session(path, options, **others)

    call_fp8(copied)
    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    assert all(check.status != "failed" for check in verify(copied))
    assert opened == [(f"{INT8}.onnx", False), (f"{FP32}.onnx", True)]

    opened.clear()
    fp8 = dataclasses.replace(graphs["fp32"], precision="fp8-fp16")
    (model,) = collect([(fp8.path, fp8)]).models
    compute_outputs(model, fp8.main_file, np.ones((4, 3, 32, 32), np.float32))
    open_runner(fp8, "cpu").close()
    assert opened == 2 * [("model.onnx", True)]


def try_entry(options: onnxruntime.SessionOptions, name: str) -> str | None:
    """Return an entry of the session's configuration, None where it has none."""
    try:
        return str(options.get_session_config_entry(name))
    except RuntimeError:
        return None
