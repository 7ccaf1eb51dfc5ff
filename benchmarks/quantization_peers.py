"""INT8 by this package and by its peers: the same float ONNX model, calibration images and validation images for all.

    python benchmarks/quantization_peers.py --checkpoint ARTIFACT_OR_WEIGHTS --data DIR [--out FILE.json]
    python benchmarks/quantization_peers.py --fresh tiny --image-size 224 --calibration-images 256 --batch-size 1 --methods "ort-d*"

Every method runs in a process of its own, one after the other. A peer gets the FP32 ONNX file as our `export` writes it, and the
calibration images that our `quantize` would choose, normalized, as an array in memory; it writes an ONNX file or, some of NNCF, an
OpenVINO model. ONNX Runtime (for the latter OpenVINO) runs it on the validation images.

    ort-*         `quantize_static` after `quant_pre_process`; `ort-defaults` as it comes, the others per channel: S8S8 symmetric as
                  its documentation advises for TensorRT, U8S8 as it does for x86
    nncf-*        `nncf.quantize` of the ONNX or OpenVINO model as it comes, and with `model_type=TRANSFORMER`; `-control`:
                  `quantize_with_accuracy_control` with 0.1 pp allowed on `--control-images` other training images
    modelopt-*    `modelopt.onnx.quantization.quantize`, on the CPU, with what stays in float in FP32
    …-fp8         FP8 E4M3: NNCF's of the OpenVINO model (it has none of ONNX), Model Optimizer's with its ranges by maximum
    ours-TARGET   `convnext_deploy.quantize` and `export`: the fallback sequence, which stops at the first step that passes;
                  `-one-pass`: with `calibration_method="auto"`, all that needs no training; `-min-max`: the first step alone,
                  which is what `quantize_static` does by default

Columns: top-1; its drop against the float ONNX model with Newcombe's 95 % interval; images with the same first guess; the mean
KL(softmax(float) ‖ softmax(INT8)) in nats; the energy of the float logits over that of their change; seconds of the call that
quantizes, after imports, reading and `quant_pre_process`; its peak resident memory above that of the process with the float model
and all calibration images in it (Linux only); the size of the file. Ours decodes its images within its time, folds and proves the
folding; in brackets is the calibration alone, min-max for the fallback sequence, of images in memory as the peers have them.

Settings that matter: `--batch-size`, for memory (of ONNX Runtime most) and for accuracy: with single images NNCF's and Model
Optimizer's entropy ranges are much worse than with 32. ONNX Runtime's Entropy gives the ranges of MinMax, because by default its
histogram has as many bins as its search keeps. OpenVINO models of NNCF have a fixed batch, without which OpenVINO does not compile
that of TRANSFORMER, and compute what stays in float in FP32, not in bfloat16.

INT8 products of ONNX Runtime saturate on x86 CPUs without VNNI; then the figures say so only by being bad. The table names the
CPU's instructions for them. `--threads` is the number of cores each process may use.

Peers that cannot live in one environment get an interpreter each, which needs NumPy and the peer but not this package:

    python -m venv P && P/bin/pip install nncf openvino onnx onnxruntime sympy
    python -m venv Q && Q/bin/pip install "nvidia-modelopt[onnx]"
    python benchmarks/quantization_peers.py … --python-ort P/bin/python --python-nncf P/bin/python --python-modelopt Q/bin/python

Versions with which this was written: onnxruntime 1.31.1, onnx 1.23.2, nncf 3.4.0, openvino 2026.4.1, nvidia-modelopt 0.47.0 with
onnx 1.21.0 and onnxruntime-gpu 1.24.4. The table's own are in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers_inputs import create_fresh, write_inputs
from peers_methods import LOGITS, METHODS
from peers_ours import OURS, ours, quantize_ours
from quantization_measures import compare_logits, onnx_logits, render_table, renormalize

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.system.environment import describe_environment

_SCORE_BATCH = 64
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def run_method(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a method in a process of its own; return its `result.json`, or a `failure`."""
    folder: Path = arguments.work / name
    folder.mkdir(exist_ok=True)
    for old in ("result.json", "model.onnx", "model.xml", "logits.npy"):
        (folder / old).unlink(missing_ok=True)
    here = Path(__file__).resolve().parent
    if name.startswith(OURS):
        command = [sys.executable, str(here / "quantization_peers.py"), "--child", name]
        command += ["--checkpoint", str(arguments.checkpoint), "--data", arguments.data]
        command += ["--calibration-images", str(arguments.calibration_images)]
    else:
        command = [interpreter(name, arguments), str(here / "peers_methods.py"), name]
        command += ["--batch-size", str(arguments.batch_size)]
    failure = run_child([*command, "--work", str(arguments.work)], folder / "log.txt", arguments)
    if failure is not None:
        return {"failure": failure}
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def interpreter(name: str, arguments: argparse.Namespace) -> str:
    """Return the Python that has the peer."""
    found: str = getattr(arguments, f"python_{name.split('-')[0]}")
    return found


def run_child(command: list[str], log: Path, arguments: argparse.Namespace) -> str | None:
    """Run a command with its output in a file; return why it failed, None if it did not."""
    environment = dict(os.environ)
    if arguments.threads is not None:
        command = [*command, "--threads", str(arguments.threads)]
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, timeout=arguments.timeout, env=environment
            )
        except subprocess.TimeoutExpired:
            return f"not finished after {arguments.timeout:.0f} s"
        except OSError as error:
            return f"{command[0]} cannot be run ({error.strerror})"
    if done.returncode == 0:
        return None
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"failed: {' '.join(last)[:200]}" if done.returncode > 0 else f"ended by signal {-done.returncode}"


def score(
    name: str,
    source: Preprocess,
    reference: NDArray[np.float32],
    labels: NDArray[np.int64],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Run what a method wrote on the validation images, normalized as `source` says, and compare it with the float model."""
    folder: Path = arguments.work / name
    model = folder / "model.onnx"
    if model.exists():
        images = np.load(arguments.work / "validation.npy", mmap_mode="r")
        own = source
        if name.startswith(OURS):
            # Where the stem is quantized, the normalization is folded into it and the file takes pixels from 0 to 1.
            own = read_artifact(folder / "export" / "stages" / "onnx").preprocess
        try:
            logits = onnx_logits(
                model, images, _SCORE_BATCH, arguments.threads, lambda batch: renormalize(batch, source, own)
            )
        except Exception as error:
            # ONNX Runtime raises classes of its C++ module that have no common public base
            return {"failure": f"ONNX Runtime cannot run it: {str(error).splitlines()[0][:200]}"}
        return {"file_bytes": model.stat().st_size, **compare_logits(logits, reference, labels)}
    model = folder / "model.xml"
    command = [interpreter(name, arguments), str(Path(__file__).resolve().parent / "peers_methods.py"), LOGITS]
    command += ["--work", str(arguments.work), "--model", str(model), "--batch-size", str(_SCORE_BATCH)]
    failure = run_child(command, folder / "score.txt", arguments)
    if failure is not None:
        return {"failure": failure}
    size = model.stat().st_size + model.with_suffix(".bin").stat().st_size
    return {"file_bytes": size, **compare_logits(np.load(folder / "logits.npy"), reference, labels)}


def choose_methods(patterns: list[str], targets: list[str]) -> list[str]:
    """Return the methods that aim at one of the targets and match one of the patterns."""
    aims = {name: method.target for name, method in METHODS.items()} | ours()
    return [
        name
        for name, target in aims.items()
        if any(target.startswith(wanted) for wanted in targets) and any(fnmatchcase(name, p) for p in patterns)
    ]


def cpu_instructions() -> list[str]:
    """Return which of those that matter for INT8 this CPU has."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text(encoding="utf-8", errors="replace").split()) if path.exists() else set()
    return [name for name in _INSTRUCTIONS if name in words]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path)
    source.add_argument("--fresh", help="variant; random weights and random images, for time and memory only")
    parser.add_argument("--data")
    parser.add_argument("--image-size", type=int, default=224, help="with --fresh")
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--control-images", type=int, default=1024)
    parser.add_argument("--validation-images", type=int, help="all by default")
    parser.add_argument("--target", nargs="+", default=["tensorrt", "onnxruntime", "openvino"])
    parser.add_argument("--methods", nargs="+", default=["*"], help="names or patterns such as 'ort-*'")
    parser.add_argument("--batch-size", type=int, default=32, help="of calibration")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for a method")
    for peer in ("ort", "nncf", "modelopt"):
        parser.add_argument(f"--python-{peer}", default=sys.executable, metavar="PATH")
    parser.add_argument("--work", type=Path, help="a temporary folder by default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.checkpoint is not None and arguments.data is None:
        parser.error("--checkpoint needs --data")
    if not choose_methods(arguments.methods, arguments.target):
        parser.error(f"no method matches; there are {', '.join([*METHODS, *ours()])}")
    return arguments


def compare(arguments: argparse.Namespace) -> None:
    """Run all methods, print the table and write the record."""
    if arguments.fresh is not None:
        arguments.checkpoint, folder = create_fresh(
            arguments.fresh,
            arguments.image_size,
            arguments.calibration_images + arguments.control_images,
            arguments.validation_images or 16,
            arguments.work,
        )
        arguments.data = str(folder)
    artifact, labels = write_inputs(
        arguments.checkpoint,
        arguments.data,
        arguments.calibration_images,
        arguments.control_images,
        arguments.validation_images,
        arguments.work,
    )
    images = np.load(arguments.work / "validation.npy", mmap_mode="r")
    model = arguments.work / "float.onnx"
    reference = onnx_logits(model, images, _SCORE_BATCH, arguments.threads)
    top1 = float((reference.argmax(axis=1) == labels).mean())
    rows: list[dict[str, Any]] = [{"method": "float", "top1": top1, "file_bytes": model.stat().st_size}]
    for name in choose_methods(arguments.methods, arguments.target):
        started = time.perf_counter()
        row = {"method": name, **run_method(name, arguments)}
        if "failure" not in row:
            row |= score(name, artifact.preprocess, reference, labels, arguments)
        rows.append(row)
        print(f"{name}: {time.perf_counter() - started:.0f} s {row.get('failure', '')}", file=sys.stderr)
    instructions = cpu_instructions()
    print(render_table(rows))
    size = artifact.preprocess.image_size
    print(
        f"\n{artifact.model.variant}, {size} pixels, {arguments.calibration_images} calibration and {len(labels)} validation "
        f"images; CPU with {', '.join(instructions)}"
    )
    if arguments.out is not None:
        record = {
            "command": " ".join(["python", "benchmarks/quantization_peers.py", *sys.argv[1:]]),
            "model": artifact.model.variant,
            "image_size": size,
            "validation_images": len(labels),
            "rows": rows,
            "environment": {**describe_environment(), "instructions": instructions},
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Compare, or as a child process be ours."""
    arguments = parse_arguments()
    if arguments.child is not None:
        if arguments.threads is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
        folder = arguments.work / arguments.child
        found = quantize_ours(
            arguments.checkpoint, arguments.data, arguments.child, arguments.calibration_images, folder
        )
        (folder / "result.json").write_text(json.dumps({**found, "versions": describe_environment()["versions"]}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments.work = (arguments.work or Path(temporary)).resolve()
        arguments.work.mkdir(parents=True, exist_ok=True)
        compare(arguments)


if __name__ == "__main__":
    main()
