"""What a command imports before it has anything to do: that is what its start takes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_deploy.cli import COMMANDS

pytestmark = pytest.mark.heavy  # every import is looked at in a process of its own

HEAVY = {"torch", "torchvision", "numpy", "onnx", "onnxruntime", "openvino", "PIL", "sklearn", "plotly", "jinja2"}
CODE = """
import contextlib, io, json, sys
from convnext_deploy.cli import main
sys.argv = ["convnext-deploy", *sys.argv[1:]]
code = 0
with contextlib.redirect_stdout(io.StringIO()) as out:
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
print(json.dumps([code, len(out.getvalue()), sorted(sys.modules)]))
"""


def imported_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    code, printed, modules = json.loads(done.stdout)
    assert code in (0, 1), done.stderr  # 1: doctor, which had no time to find anything out
    assert printed > 0
    return {name.split(".")[0] for name in modules}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), *((verb, "--help") for verb in COMMANDS)], ids=str)
def test_help_imports_nothing_but_click(arguments: tuple[str, ...]) -> None:
    assert not imported_by(*arguments) & (HEAVY | {"rich", "multiprocessing", "asyncio", "unittest"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("models",),
        ("models", "v2-tiny"),
        ("models", "--json"),
        ("recommend", "--images", "5000", "--classes", "10"),
        ("recommend", "--images", "5000", "--classes", "10", "--json"),
        ("completion", "bash"),
        ("doctor", "--timeout", "0.001"),  # all that it imports, it imports in other processes
    ],
    ids=" ".join,
)
def test_verb_that_computes_nothing_imports_no_torch(arguments: tuple[str, ...]) -> None:
    assert not imported_by(*arguments) & HEAVY


QUICKSTART = "quickstart.toml" if importlib.util.find_spec("tensorrt_rtx") else "quickstart-onnx.toml"


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", str(Path(__file__).parents[2] / "recipes" / QUICKSTART)),
        ("train", "--model", "atto", "--epochs", "2000"),  # whose time is measured on a few steps
    ],
    ids=["run", "train"],
)
def test_dry_run_imports_no_exporter_and_no_compiler(arguments: tuple[str, ...]) -> None:
    found = imported_by(*arguments, "--dry-run")
    assert "torch" in found
    # sympy comes with PyTorch's compiler
    assert not found & {"onnx", "onnx_ir", "onnxruntime", "openvino", "sympy", "torchvision", "plotly", "jinja2"}
