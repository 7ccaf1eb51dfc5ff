"""The parts of `gpu.py` that run commands of the package: a resume, two trainings at once, engines built and scored."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_setting import Figures, Setting

from convnext_deploy.quantization.scheme import SCHEMES


def _train(folder: Path, setting: Setting, epochs: int) -> list[str]:
    words = [sys.executable, "-m", "convnext_deploy", "train", "--data", "digits", "--model", "atto", "--yes"]
    return [*words, "--epochs", str(epochs), "--device", setting.device, "--out", str(folder)]


def resume(setting: Setting) -> Figures:
    """End a training with SIGTERM once it has a state, and run the same command again."""
    with tempfile.TemporaryDirectory() as place:
        words = _train(Path(place, "run"), setting, 4)
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while child.poll() is None and not list(Path(place).rglob("last.pt")):
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        first, _ = child.communicate()
        again = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    step = re.search(r"goes on at step (\d+) of (\d+)", again.stdout)
    if child.returncode != 128 + signal.SIGTERM or again.returncode or step is None:
        raise RuntimeError(f"codes {child.returncode}, {again.returncode}: {_last(first)} / {_last(again.stdout)}")
    return {"ended with code": child.returncode, "goes on at step": f"{step[1]} of {step[2]}"}


def two_processes(setting: Setting) -> Figures:
    """Train twice at once on one device."""
    with tempfile.TemporaryDirectory() as place:
        started = time.monotonic()
        children = [
            subprocess.Popen(
                _train(Path(place, f"run{number}"), setting, 1),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        outputs = [child.communicate()[0] for child in children]
    for child, output in zip(children, outputs, strict=True):
        if child.returncode:
            raise RuntimeError(f"code {child.returncode}: {_last(output)}")
    return {"both, s": time.monotonic() - started}


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


_RECIPE = """
name = "engines"
data = "digits"
[[stages]]
kind = "train"
name = "float"
[stages.model]
name = "atto"
image_size = 32
[stages.fit]
epochs = 2
batch_size = 64
base_learning_rate = 0.064
{quantized}
[[stages]]
kind = "onnx"
name = "graph"
source = "{source}"
precision = "fp16"
runtime = "{flavor}"
[[stages]]
kind = "tensorrt"
name = "engine"
flavor = "{flavor}"
{gpus}
"""


def engine(setting: Setting, target: str | None) -> Figures:
    """Build an engine for this GPU from a small network, score it and time it, as `run` does."""
    if setting.device != "cuda":
        return {"not run": "engines run on a GPU"}
    if target is not None and target not in SCHEMES:
        return {"not run": f"there is no target {target}"}
    flavors = [name for name in ("tensorrt", "tensorrt_rtx") if _is_installed(name)]
    if not flavors:
        return {"not run": "neither tensorrt nor tensorrt_rtx is installed"}
    flavor = flavors[0].replace("_", "-")
    major, minor = torch.cuda.get_device_capability()
    quantized = "" if target is None else f'[[stages]]\nkind = "ptq"\nname = "ptq"\ntarget = "{target}"\n'
    with tempfile.TemporaryDirectory() as place:
        recipe, out = Path(place, "engines.toml"), Path(place, "run")
        gpus = f'gpus = ["sm{major}{minor}"]' if flavor == "tensorrt-rtx" else ""
        source = "float" if target is None else "ptq"
        recipe.write_text(_RECIPE.format(quantized=quantized, source=source, flavor=flavor, gpus=gpus))
        words = [sys.executable, "-m", "convnext_deploy", "run", str(recipe), "--out", str(out), "--device", "cuda"]
        ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if ran.returncode not in (0, 3):  # 3: measured, and a gate failed
            raise RuntimeError(f"code {ran.returncode}: {_last(ran.stdout)}")
        lines = [
            line.strip()
            for line in ran.stdout.splitlines()
            if line.strip().startswith(("float", "ptq", "graph", "engine"))
        ]
    return {"runtime": flavor, **{f"row {number}": line for number, line in enumerate(lines[-6:], 1)}}


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
