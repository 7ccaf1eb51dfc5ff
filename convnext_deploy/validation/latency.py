"""How long one image takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from convnext_deploy.runners import Runner

_WARM_UP = 10
_LEAST_RUNS, _MOST_RUNS = 20, 200
_BUDGET_S = 2.0


@dataclass(frozen=True)
class Latency:
    """Time per call in milliseconds, median and 90th percentile, at `batch_size`."""

    batch_size: int
    p50_ms: float
    p90_ms: float


def measure_latency(runner: Runner, image_shape: tuple[int, int, int]) -> Latency:
    """Time single images `(C, S, S)` in this process: 10 calls to warm up, then 20 to 200 within about two seconds.

    The machine's other work is in these numbers; they tell artifacts apart that differ clearly.
    """
    images = np.random.default_rng(0).standard_normal((1, *image_shape), dtype=np.float32)
    for _ in range(_WARM_UP):
        runner.logits(images)
    times: list[float] = []
    end = time.perf_counter() + _BUDGET_S
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        runner.logits(images)
        times.append(1000.0 * (time.perf_counter() - start))
    return Latency(1, float(np.percentile(times, 50)), float(np.percentile(times, 90)))
