"""Is what we time what the user runs: our calls beside the runtime's own, on one session in one process (`latency.py --own-call`).

Calls of `Runner.run`, which every time of this package is made of, alternate with calls of the runtime on the same session and the
same array; what one takes longer than the other is ours. The ratio is the median over pairs of calls, so that a machine that drifts
or has other work is in both. Of INT8 files that take normalized images, and of those that take pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from latency_files import Files, save
from latency_timing import Pair, run_pair
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.evaluation.latency import noise_images
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.runners import open_runner
from convnext_deploy.runners.onnxruntime import ONNXRuntimeRunner
from convnext_deploy.runners.openvino import OpenVINORunner

MOST = 1.03
"""A call of ours may take so many times as long as the runtime's."""
STAGES = {"onnxruntime": ("int8-onnxruntime", "uint8-onnxruntime"), "openvino": ("int8-openvino", "uint8-openvino")}


def own_call(arguments: argparse.Namespace) -> int:
    """Print both times and their ratio for every network, batch size and runtime; return the exit code."""
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        files = Files(model, arguments.image_size, arguments)
        for size in arguments.batch_sizes:
            for runner, stages in STAGES.items():
                artifacts = {stage: files.stage(stage) for stage in stages}
                for stage, artifact in artifacts.items():
                    pairs = [run_pair(artifact, runner, size, arguments) for _ in range(arguments.rounds)]
                    ratio = median_ratio([pair.ratio for pair in pairs], [1.0] * len(pairs))
                    ours, theirs = (
                        statistics.median(times)
                        for times in zip(*((p.ours_ms, p.runtime_ms) for p in pairs), strict=True)
                    )
                    words = (
                        f"{files.variant}, batch {size}, {stage}: {ours:.3f} ms, the runtime's own call {theirs:.3f} ms"
                    )
                    print(f"{words}, {ratio[0]:.4f}× [{ratio[1]:.4f}, {ratio[2]:.4f}]", flush=True)
                    row = {"model": files.variant, "batch_size": size, "stage": stage, "runner": runner}
                    rows.append({**row, "processes": [dataclasses.asdict(pair) for pair in pairs], "ratio": ratio})
    save(rows, arguments, most=MOST)
    return 0 if all(row["ratio"][0] <= MOST for row in rows) else 1


def time_pair(artifact: Artifact, runner: str, batch_size: int, threads: int | None, seconds: float) -> Pair:
    """Time our calls and the runtime's, which take turns in this process, each of them first every second time."""
    opened = open_runner(artifact, runner=runner, threads=threads, alone=True)
    prepared = opened.prepare(noise_images(batch_size, (artifact.model.in_channels, *artifact.preprocess.sides)))
    calls: list[Callable[[], object]] = [lambda: opened.run(prepared), runtime_call(opened, prepared)]
    times: tuple[list[float], list[float]] = ([], [])
    for until, least in ((seconds / 4, 3), (seconds, 10)):
        for found in times:
            found.clear()  # what warmed up
        end = time.perf_counter() + until
        while time.perf_counter() < end or len(times[0]) < least:
            for place in (0, 1) if len(times[0]) % 2 else (1, 0):
                start = time.perf_counter()
                calls[place]()
                times[place].append(1000.0 * (time.perf_counter() - start))
    opened.close()
    ratios = [ours / theirs for ours, theirs in zip(*times, strict=True)]
    return Pair(*map(statistics.median, (*times, ratios)))


def runtime_call(opened: object, prepared: NDArray[np.generic]) -> Callable[[], object]:
    """Return the call that the runtime's documentation shows, on the session that the runner has opened."""
    if isinstance(opened, ONNXRuntimeRunner):
        session = opened.session
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: prepared})
    assert isinstance(opened, OpenVINORunner)
    opened.run(prepared)
    request = opened.request(len(prepared))
    return lambda: request.infer([prepared], share_inputs=True)
