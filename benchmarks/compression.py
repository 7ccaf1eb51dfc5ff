"""A latency named, and the network that comes out: `compress` beside Torch-Pruning with NNCF, and beside a narrower network.

    python benchmarks/compression.py --checkpoint ARTIFACT --data DIR [--targets openvino onnxruntime] [--budgets 0.7 0.5]
        [--epochs 4] [--work DIR] [--out FILE.json]

Budgets are shares of the time that our INT8 file of the dense network takes for one image. Ours is the verb as anyone runs it. For
each budget a peer gets the largest of a dozen networks whose INT8 file was timed to keep it; where none does, the fastest:

    torch-pruning  channels and hidden units by first-order importance (isomorphic, global), which is what Torch-Pruning advises
                   for ConvNeXt; `nncf.quantize` of the ONNX file as it comes
    scaled         all channels scaled alike, fresh weights; quantized likewise

All learn from the dense network for `--epochs` epochs with the loop, loss, learning rate, crops and order of crops of ours, and are
quantized with the same images. At the end all files of a target are timed together, in interleaved, isolated processes, and scored
on all validation images by that runtime. What is finished lies in `--work` and is not made again.

It needs `pip install torch-pruning nncf openvino` beside this package.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from compression_peers import Size, build, quantized, sizes, train
from compression_table import COMPRESSION_HEAD, DENSE, FASTEST, OURS, PRUNED, SCALED, compression_lines
from markdown_cells import as_table
from numpy.typing import NDArray
from peers_inputs import write_inputs
from quantization_measures import renormalize, taken_by
from timm.models.convnext import ConvNeXt as TimmConvNeXt

from convnext_deploy import compress
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.api.training_presets import choose
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.recipe import SOURCE
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.evaluation.timing.interleaved import Candidate, time_interleaved
from convnext_deploy.evaluation.timing.speedup import usual_threads
from convnext_deploy.metrics.paired import compare_predictions
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.runners import open_runner
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.files import write_text
from convnext_deploy.system.progress_bars import create_progress

_BATCH = 64


def compress_dense(target: str, arguments: argparse.Namespace) -> dict[str, Artifact]:
    """Run the verb, all budgets at once, and return its INT8 files by budget, the dense one under `dense`."""
    out, started = arguments.work / f"ours-{target}", time.perf_counter()
    stages = out / "stages"
    alone = len(arguments.budgets) == 1
    names = {f"{budget:g}x": "onnx" if alone else f"onnx-{budget:g}x" for budget in arguments.budgets}
    if not all((stages / name).exists() for name in names.values()):
        compress(
            arguments.checkpoint,
            latency_budget=list(names),
            target=target,  # type: ignore[arg-type]  # one of its names
            out=out,
            data=DataOptions(arguments.data),
            training=TrainingOptions(epochs=arguments.epochs),
            execution=ExecutionOptions(progress=create_progress(), cache_dir=arguments.work / "cache"),
        )
        write_text(out / "seconds.json", json.dumps(time.perf_counter() - started))
    return {DENSE: read_artifact(stages / "dense-onnx"), **{b: read_artifact(stages / n) for b, n in names.items()}}


def times_beside(
    dense: Artifact, others: list[Artifact], target: str, rounds: int, seconds: float
) -> list[tuple[float, tuple[float, float, float]]]:
    """Return of the dense file and of each other the milliseconds of an image and the ratio to the dense one with its interval."""
    candidates = [
        Candidate(str(number), artifact, target, "cpu", 1, usual_threads())
        for number, artifact in enumerate([dense, *others])
    ]
    timings = time_interleaved(candidates, rounds=rounds, seconds=seconds, progress=create_progress())
    per_round = [[process.p50_ms for process in timing.processes] for timing in timings]
    return [(float(np.median(own)), median_ratio(own, per_round[0])) for own in per_round]


def choose_size(
    way: str, budget: float, dense: Artifact, source: Artifact, target: str, arguments: argparse.Namespace
) -> tuple[Size, bool]:
    """Return the largest network of a peer whose INT8 file keeps the budget, or the fastest, and whether it keeps it."""
    kept = arguments.work / f"sizes-{way}-{target}.json"
    grid = list(sizes(way, source, arguments.work, arguments))
    if not kept.exists():
        found = times_beside(dense, [artifact for _, artifact in grid], target, 5, 0.3)
        write_text(kept, json.dumps([ratio for _, (ratio, *_) in found[1:]]))
    ratios = json.loads(kept.read_text(encoding="utf-8"))
    within = [size for (size, _), ratio in zip(grid, ratios, strict=True) if ratio <= budget]
    return (within[0], True) if within else (grid[int(np.argmin(ratios))][0], False)


def trained_peer(
    size: Size, source: Artifact, config: DistillConfig, data: Data, arguments: argparse.Namespace
) -> Artifact:
    """Train and quantize a peer's network."""
    folder = size.folder.with_name(f"{size.folder.name}-trained-{config.fit.epochs}")

    def make() -> TimmConvNeXt:
        network = build(size, source, arguments.work)
        execution = Execution(progress=create_progress(), cache_dir=arguments.work / "cache")
        name, cache = f"{size.way} {size.amount:.2f}", arguments.work / "cache"
        train(network, source, config, StageContext(name, folder, data, execution, cache, teachers=(source,)))
        return network

    return quantized(make, folder, arguments)


def guesses(artifact: Artifact, source: Preprocess, target: str, work: Path) -> NDArray[np.int64]:
    """Return the first guess of a file for every validation image, by the runtime that it is for."""
    images = np.load(work / "validation.npy", mmap_mode="r")
    taken = taken_by(artifact, source)
    runner = open_runner(artifact, runner=target)
    found = [
        runner.logits(renormalize(images[start : start + _BATCH], source, taken)).argmax(1)
        for start in range(0, len(images), _BATCH)
    ]
    runner.close()
    return np.concatenate(found)


def measure(target: str, labels: NDArray[np.int64], data: Data, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of a target."""
    source = open_input(arguments.checkpoint)
    training = TrainingOptions(epochs=arguments.epochs)
    chosen = choose(source.model.variant, DataOptions(arguments.data), training, data, source, "pruned")
    config = DistillConfig(chosen.model, SOURCE, chosen.fit)
    ours = compress_dense(target, arguments)
    dense = ours.pop(DENSE)
    files: list[tuple[str, str, Artifact, float | None]] = [
        (OURS, budget, artifact, None) for budget, artifact in ours.items()
    ]
    for budget, way in itertools.product(arguments.budgets, (PRUNED, SCALED)):
        size, keeps = choose_size(way, budget, dense, source, target, arguments)
        if (way, FASTEST) not in [file[:2] for file in files]:  # which is that of all smaller budgets too
            artifact = trained_peer(size, source, config, data, arguments)
            files.append((way, f"{budget:g}x" if keeps else FASTEST, artifact, size.amount))
    times = times_beside(dense, [artifact for _, _, artifact, _ in files], target, arguments.rounds, 0.5)
    before = guesses(source, source.preprocess, "torch", arguments.work)
    rows = []
    for (way, budget, artifact, amount), (ms, ratio) in zip([(DENSE, "1x", dense, None), *files], times, strict=True):
        drop = compare_predictions(labels, before, guesses(artifact, source.preprocess, target, arguments.work))
        rows.append(
            {
                "target": target,
                "way": way,
                "budget": budget,
                "amount": amount,
                "ms": ms,
                "ratio": list(ratio),
                "top1": (drop.both + drop.gained) / len(labels),
                "drop_pp": drop.top1_drop_pp,
                "drop_interval_pp": list(drop.interval_pp),
            }
        )
    seconds = arguments.work / f"ours-{target}" / "seconds.json"
    rows[0]["seconds_of_ours"] = json.loads(seconds.read_text()) if seconds.exists() else None
    return rows


def main() -> None:
    """Compress, let the peers do it, time and score all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the dense network in FP32")
    parser.add_argument("--data", required=True, help="its images, as train/CLASS/ and test/CLASS/")
    parser.add_argument(
        "--targets", nargs="+", choices=["openvino", "onnxruntime"], default=["openvino", "onnxruntime"]
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--python-nncf", default=sys.executable, help="an interpreter that has NNCF")
    parser.add_argument("--work", type=Path, default=Path("runs/compression"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    source, labels = write_inputs(
        arguments.checkpoint, arguments.data, arguments.calibration_images, _BATCH, None, arguments.work
    )
    arguments.image_size = source.preprocess.image_size
    data, rows = open_data(arguments.data), []
    for target in arguments.targets:
        rows += measure(target, labels, data, arguments)
        print(as_table(COMPRESSION_HEAD, compression_lines(rows)), flush=True)
        if arguments.out is not None:
            record = {
                "command": f"python benchmarks/compression.py --checkpoint ATTO --data DIR --epochs {arguments.epochs}",
                "checkpoint": dataclasses.asdict(source.model),
                "epochs": arguments.epochs,
                "environment": describe_environment(),
                "rows": rows,
            }
            write_text(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
