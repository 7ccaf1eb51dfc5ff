"""`doctor` in its own process, on this machine and with broken packages planted before the good ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convnext_deploy.api import doctor as checkup
from convnext_deploy.diagnosis.probing import Probe
from tests.cli.conftest import call
from tests.diagnosis.test_checkup import WELL

LOADING = "doctor: loading libraries\n"  # which takes more than a moment
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def run_doctor(*arguments: str, planted: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convnext_deploy", "doctor", *arguments]
    environment = os.environ | ({} if planted is None else {"PYTHONPATH": str(planted)})
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def plant(folder: Path, **packages: str) -> Path:
    for name, text in packages.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(text)
    return folder


@pytest.mark.heavy
def test_doctor_shows_one_calm_screen_where_all_is_well() -> None:
    begun = time.monotonic()
    done = run_doctor()
    assert time.monotonic() - begun < 60  # 4 s on an idle machine; this says that nothing hangs
    assert (done.returncode, done.stderr.removeprefix(LOADING)) == (0, "next: convnext-deploy models\n")
    lines = done.stdout.splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith("convnext_deploy ")
    assert lines[-1] == "The main path works."
    shown = [line for line in lines if line.startswith(("  yes  ", "  no   "))]
    assert len(shown) == 18
    assert len({line.index("  ", 7) for line in shown if "TensorRT, build and run" in line}) == 1
    assert any(line.startswith("  yes  export to ONNX ") for line in shown)


@pytest.mark.parametrize("works", [True, False])
def test_doctor_as_json_is_one_document(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    probes = WELL if works else {**WELL, "torch": Probe(error="ImportError")}
    monkeypatch.setattr(checkup, "probe", lambda chains, timeout_s: probes)
    outcome = call("doctor", "--json", "--quiet")
    assert (outcome.code, outcome.err) == (0 if works else 1, "")
    assert json.loads(outcome.out)["works"] is works


@pytest.mark.parametrize("width", [72, 100, 300])
def test_doctor_fits_into_a_terminal_of_any_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(checkup, "probe", lambda chains, timeout_s: {**WELL, "torch": Probe(error="ImportError")})
    monkeypatch.setenv("COLUMNS", str(width))
    lines = (outcome := call("doctor")).out.splitlines()
    assert outcome.err == ""  # what is broken comes first
    assert max(map(len, lines)) <= min(width, 120)
    assert "Problems" in lines


@pytest.mark.heavy
def test_doctor_survives_whatever_is_broken(tmp_path: Path) -> None:
    planted = plant(
        tmp_path,
        torch="raise ImportError('libcudart.so.13: cannot open shared object file')",
        onnxruntime=CRASH,
        openvino="import time; time.sleep(600)",
        webdataset="import sys; print('bye'); sys.exit(3)",
        numpy="def f(:",
        huggingface_hub="__version__ = object()",
        rich="raise RuntimeError('no colours')",
    )
    done = run_doctor("--timeout", "10", planted=planted)
    assert (done.returncode, done.stderr.removeprefix(LOADING)) == (1, "")
    text = " ".join(done.stdout.split())
    for problem in (
        "torch cannot be used (ImportError: libcudart.so.13: cannot open shared object file): pip install --force-reinstall",
        "onnxruntime cannot be used (importing it ends the process (SIGSEGV))",
        "openvino cannot be used (it is still being imported after 10 s)",
        "webdataset cannot be used (SystemExit: 3)",
        "numpy cannot be used (SyntaxError:",
        "rich cannot be used (RuntimeError: no colours)",
        "no train, distill, quantize torch cannot be used, see above",
        "The main path is broken",
    ):
        assert problem in text
    assert "bye" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_doctor_refuses_a_time_that_is_none(seconds: str) -> None:
    done = run_doctor("--timeout", seconds)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--timeout'" in done.stderr
