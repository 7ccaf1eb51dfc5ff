"""Export every variant to ONNX in FP32, FP16 and INT8 and to TensorRT-RTX engines for four generations of GPUs, and check each.

    python benchmarks/export.py                                         # the whole table, at 32 pixels
    python benchmarks/export.py --models tiny --image-size 224          # time and memory of one

Each variant has a process of its own. Weights are random. Networks of more than `--largest` million parameters have one block in
each model stage. Ends with code 1 if any figure is worse than what is promised.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convnext_deploy as api
from convnext_deploy.api.export import export
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.details import EngineDetails, PrecisionReport
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess, file_header
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.variants import VARIANTS, build_model, resolve_variant
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.runners import open_runner
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_text

CLASSES, IMAGES = 10, 8
HERE = ExecutionOptions(device="cpu", workers=0)
GPUS = {
    "fp32": ("sm86", "sm89", "sm120"),
    "fp16": ("sm75", "sm86", "sm89", "sm120"),
    "int8-fp16": ("sm86", "sm89", "sm120"),
}
LARGEST_ERROR = {"fp32": 1e-4, "fp16": 0.02, "int8-fp16": 0.03}
ENGINE_S, EXPORT_S, EXPORT_MB = 10.0, 30.0, 2048.0


def main() -> int:
    """Measure each variant in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--largest", type=float, default=100.0, metavar="MILLIONS")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.image_size, arguments.largest)))
        return 0
    rows = []
    print(HEADER)
    for name in arguments.models:
        command = [sys.executable, __file__, "--one", resolve_variant(name), "--image-size", str(arguments.image_size)]
        command += ["--largest", str(arguments.largest)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 1
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(as_line(rows[-1]), flush=True)
    if arguments.out is not None:
        content = {"environment": describe_environment(), "image_size": arguments.image_size, "rows": rows}
        write_text(arguments.out, json.dumps(content, indent=1))
    problems = [problem for row in rows for problem in problems_of(row)]
    print("\n".join(problems) or f"all {len(rows)} variants: every figure within what is promised")
    return bool(problems)


COLUMNS = (
    "variant", "parameters M", "ONNX MB: FP32, FP16, INT8+FP16", "largest error: FP32, FP16, mean of INT8+FP16", "engines",
    "INT8 nodes", "ONNX s", "engine s", "memory MB",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def as_line(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    files = row["files"]
    cells = [
        row["variant"] + ("" if row["full_depth"] else " (one block a stage)"),
        f"{row['parameters'] / 1e6:.1f}",
        ", ".join(f"{files[kind]['onnx_mb']:.1f}" for kind in GPUS),
        ", ".join(f"{files[kind]['error']:.1e}" for kind in GPUS),
        str(sum(len(file["engines"]) for file in files.values())),
        f"{row['int8_nodes'][0]} of {row['int8_nodes'][1]}",
        f"{row['onnx_s']:.1f}",
        f"{max(s for file in files.values() for s in file['engines'].values()):.1f}",
        f"{row['export_mb']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def problems_of(row: dict[str, Any]) -> list[str]:
    """Return what of a row is worse than promised."""
    found = []
    for kind, file in row["files"].items():
        if file["error"] > LARGEST_ERROR[kind]:
            found.append(f"{row['variant']} {kind}: error {file['error']:.1e}, expected at most {LARGEST_ERROR[kind]}")
        slow = {gpu: s for gpu, s in file["engines"].items() if s > ENGINE_S and row["full_depth"]}
        found += [
            f"{row['variant']} {kind} {gpu}: built in {s:.1f} s, expected {ENGINE_S} s" for gpu, s in slow.items()
        ]
    if row["int8_nodes"][0] != row["int8_nodes"][1]:
        found.append(f"{row['variant']}: {row['int8_nodes'][0]} of {row['int8_nodes'][1]} MatMul/Conv nodes in INT8")
    if row["variant"] == "convnext_tiny" and (row["onnx_s"] > EXPORT_S or row["export_mb"] > EXPORT_MB):
        found.append(f"convnext_tiny: {row['onnx_s']:.0f} s and {row['export_mb']:.0f} MB to export")
    return found


def measure(variant: str, image_size: int, largest: float) -> dict[str, Any]:
    """Export one variant in every way, and return the figures."""
    row = VARIANTS[variant]
    spec = ModelSpec(variant, CLASSES)
    parameters = count(spec)
    full_depth = parameters <= largest * 1e6
    if not full_depth:
        VARIANTS[variant] = dataclasses.replace(row, depths=(1, 1, 1, 1))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        weights, data = write_weights(place / "weights.safetensors", spec, image_size), write_images(place, image_size)
        load_network(open_input(weights))
        before = peak_mb()
        start = time.perf_counter()
        single = exported(weights, place / "fp32", "fp32", None)
        onnx_s, export_mb = time.perf_counter() - start, peak_mb() - before
        api.quantize(
            weights,
            calibration_method="minmax",
            calibration_images=IMAGES,
            out=place / "int8",
            data=DataOptions(data),
            execution=HERE,
        )
        int8 = place / "int8" / "stages" / "ptq"
        files = {"fp32": single, "fp16": exported(weights, place / "fp16", "fp16", data)}
        files["int8-fp16"] = exported(int8, place / "int8-fp16", "fp16", data)
        images = np.random.default_rng(1).normal(size=(2, 3, image_size, image_size)).astype(np.float32)
        expected = {kind: logits(open_input(weights), images) for kind in ("fp32", "fp16")}
        expected["int8-fp16"] = logits(read_artifact(int8), images)
        figures: dict[str, Any] = {}
        reports: list[PrecisionReport] = []
        for kind, artifact in files.items():
            difference = np.abs(logits(artifact, images) - expected[kind])
            # a value at a rounding boundary goes to either side, and a few INT8 logits differ by some steps
            error = float(
                (difference.mean() if kind == "int8-fp16" else difference.max()) / np.abs(expected[kind]).max()
            )
            figures[kind] = {"onnx_mb": artifact.size_bytes / 1e6, "error": error, "engines": {}}
            for gpu in GPUS[kind]:
                start = time.perf_counter()
                out = place / f"{kind}-{gpu}"
                export(artifact.path, format="tensorrt-rtx", gpus=(gpu,), out=out, execution=HERE)
                figures[kind]["engines"][gpu] = time.perf_counter() - start
                engine = read_artifact(out / "stages" / "engine")
                found = engine.details_as(EngineDetails).precisions.values()
                reports += [report for report in found if report is not None and kind == "int8-fp16"]
    return {
        "variant": variant,
        "parameters": parameters,
        "full_depth": full_depth,
        "files": figures,
        "int8_nodes": (min(r.nodes.get("INT8", 0) for r in reports), max(r.requested_int8 for r in reports)),
        "onnx_s": onnx_s,
        "export_mb": export_mb,
    }


def exported(source: Path, out: Path, precision: Any, data: Path | None) -> Artifact:
    """Export to ONNX and return the artifact."""
    images = IMAGES if precision == "fp16" else None
    export(
        source,
        precision=precision,
        runtime="tensorrt-rtx",
        range_images=images,
        out=out,
        data=DataOptions(data),
        execution=HERE,
    )
    return read_artifact(out / "stages" / "onnx")


def logits(artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """Return what an artifact computes."""
    runner = open_runner(artifact)
    try:
        return runner.logits(images)
    finally:
        runner.close()


def count(spec: ModelSpec) -> int:
    """Return the number of parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(spec).parameters())


def peak_mb() -> float:
    """Return the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def write_weights(path: Path, spec: ModelSpec, image_size: int) -> Path:
    """Write random weights with which every layer counts."""
    generator = torch.Generator().manual_seed(0)
    network = build_model(spec)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim in (2, 4) and min(parameter.shape[:2]) > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * noise)
    save_state(path, network.state_dict(), file_header(spec, default_preprocess(image_size), None, "fp32"))
    return path


def write_images(folder: Path, image_size: int) -> Path:
    """Write an image folder of noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, number in (("train", 2 * IMAGES), ("val", CLASSES)):
        for i in range(number):
            place = folder / "images" / part / f"class{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return folder / "images"


if __name__ == "__main__":
    sys.exit(main())
