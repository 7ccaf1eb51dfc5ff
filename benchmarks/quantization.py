"""Every way to INT8 on trained checkpoints and an image folder such as CIFAR-10: what it costs, on the exported ONNX files.

    python benchmarks/quantization.py --checkpoint ARTIFACT [ARTIFACT ...] --data DIR [--work DIR] [--out FILE.json]

For each checkpoint and target: single methods (512 calibration images), the fallback sequence, and training for `--epochs`
epochs from the strongest single method, with the FP32 network as the teacher. Each result is exported and run by ONNX Runtime
on all validation images, beside the FP32 export of the same checkpoint. `drop` is against that, with Newcombe's 95 % interval;
agreement, KL (nats) and SQNR are of its logits against the FP32 ones. Seconds are those of the stage on a machine that may have
other work. What was finished in `--work` is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quantization_measures import compare_logits, onnx_logits

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.choices import Target
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.config.recipe import SOURCE, Recipe, StageEntry
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.pipeline.ingredients import ingredients_of
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.stage import Settings, execute_stage, reusable, stage_folder
from convnext_deploy.stages.quantize import BARE, SEQUENCE
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress_bars import create_progress

WHOLE = "fallback sequence"


def methods(target: Target, arguments: argparse.Namespace) -> Iterator[tuple[str, StageConfig, str]]:
    """Yield name, settings and source of every way that is compared."""
    for name in ("minmax", "moving_average", "percentile", "mse", "entropy"):
        steps = dataclasses.replace(BARE, calibration_method=name)
        yield name.replace("_", " "), PTQConfig(**dataclasses.asdict(steps), target=target), SOURCE
    for name, steps in list(SEQUENCE.items())[1:]:
        yield name, PTQConfig(**dataclasses.asdict(steps), target=target), SOURCE
    sequence = QuantizeConfig(target=target, method="ptq", max_drop_pp=arguments.max_drop)
    yield WHOLE, dataclasses.replace(sequence, selection_images=arguments.selection_images), SOURCE
    if arguments.epochs:
        fit = FitConfig(
            epochs=arguments.epochs,
            base_learning_rate=arguments.base_learning_rate,
            warmup_epochs=0.1,
            drop_path_rate=0.0,
            crop_scale_min=0.4,
            weight_decay=0.0,
        )
        yield "training", QATConfig(fit=fit), "bias correction"


def main() -> None:
    """Quantize, export, measure, and print one table for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--targets", nargs="+", default=["tensorrt", "onnxruntime", "openvino"])
    parser.add_argument("--max-drop", type=float, default=0.1, help="of the fallback sequence, in percentage points")
    parser.add_argument("--selection-images", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=1, help="of training; 0: none")
    parser.add_argument("--base-learning-rate", type=float, default=4e-4)
    parser.add_argument("--work", type=Path, default=Path("runs/quantization"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = open_data(arguments.data)
    tables = [measure(path, data, arguments) for path in arguments.checkpoint]
    for table in tables:
        print(f"\n{table['variant']}, FP32 top-1 {100 * table['top1']:.2f} %\n")
        print("| target | method | top-1 % | drop pp [95 %] | agree % | KL | SQNR dB | s |\n|" + "---|" * 8)
        for row in table["rows"]:
            low, high = row["drop_interval_pp"]
            drop = f"{row['drop_pp']:+.2f} [{low:+.2f}, {high:+.2f}]"
            print(
                f"| {row['target']} | {row['method']} | {100 * row['top1']:.2f} | {drop} | {100 * row['agreement']:.2f} | "
                f"{row['kl']:.1e} | {row['sqnr_db']:.1f} | {row['seconds']:.1f} |"
            )
    if arguments.out is not None:
        command = " ".join(["python", "benchmarks/quantization.py", *sys.argv[1:]])
        record = {"command": command, "tables": tables, "environment": describe_environment()}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def measure(path: Path, data: Data, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one checkpoint."""
    source = open_input(path)
    work = arguments.work / f"{source.model.variant}-{source.sha256[:8]}"
    labels = np.asarray(data.validation.labels)
    exported, _ = execute(StageEntry("onnx-fp32", ONNXConfig(), SOURCE), {SOURCE: source}, data, work)
    reference = logits_of(exported, data, work)
    rows = []
    for target in arguments.targets:
        artifacts = {SOURCE: source}
        for name, config, parent in methods(target, arguments):
            stage = StageEntry(f"{target}-{name.replace(' ', '-')}", config, parent)
            artifacts[name], seconds = execute(stage, artifacts, data, work)
            onnx, _ = execute(StageEntry(f"{stage.name}-onnx", ONNXConfig(), name), artifacts, data, work)
            found = compare_logits(logits_of(onnx, data, work), reference, labels)
            selection = artifacts[name].details_as(TorchDetails).selection
            label = name if selection is None else f"{name} ({selection.chosen})"
            rows.append({"target": target, "method": label, "seconds": seconds, **found})
            print(f"{target}: {label}: {json.dumps(found)}", file=sys.stderr)
    return {
        "checkpoint": path.name,
        "variant": source.model.variant,
        "top1": float((reference.argmax(axis=1) == labels).mean()),
        "rows": rows,
    }


def execute(stage: StageEntry, artifacts: dict[str, Artifact], data: Data, work: Path) -> tuple[Artifact, float]:
    """Execute a stage, or take what an earlier run made of the same; return its artifact and the seconds that it took."""
    settings = Settings(work, Execution(progress=create_progress()))
    recipe = Recipe("quantization", (StageEntry("placeholder", ONNXConfig(), SOURCE),), source="given")
    made_of = ingredients_of(stage, artifacts, data, recipe.seed)
    artifact = reusable(stage_folder(settings, stage), made_of.key)
    if artifact is None:
        artifact = execute_stage(stage, artifacts, recipe, settings, data, made_of)
    return artifact, artifact.lineage[-1].wall_s


def logits_of(artifact: Artifact, data: Data, work: Path) -> NDArray[np.float32]:
    """Return the logits of an ONNX artifact for all validation images, as its own transform prepares them."""
    preprocess = artifact.preprocess
    name = "-".join(f"{value:.4f}" for value in (*preprocess.mean, *preprocess.std))
    file = work / f"validation-{preprocess.image_size}-{preprocess.crop_pct}-{name}.npy"
    if not file.exists():
        batches = EvaluationBatches(data.validation, preprocess, 256, 0)
        np.save(file, np.concatenate([images.numpy() for images, _ in batches]))
    return onnx_logits(artifact.main_file, np.load(file, mmap_mode="r"), 64, None)


if __name__ == "__main__":
    main()
