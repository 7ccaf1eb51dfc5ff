"""Time calls of a runner in this process."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.runners import Runner
from convnext_deploy.system.load import watch_load
from convnext_deploy.system.random_state import forked_random

_WARM_UP = 10
_LEAST_RUNS, _MOST_RUNS = 20, 200
_BUDGET_S = 2.0


@dataclass(frozen=True)
class Latency:
    """Time per call in milliseconds, median and 90th percentile, at `batch_size`.

    `loaded` tells in words that the machine did other work meanwhile, so that the times are not to be relied on; None: it did not.
    `times_ms` are the single times, in order, to a ten-thousandth of a millisecond; empty where they were not kept.
    """

    batch_size: int
    p50_ms: float
    p90_ms: float
    loaded: str | None = None
    times_ms: tuple[float, ...] = ()


def noise_images(batch_size: int, image_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return images `(batch_size, C, S, S)` float32 of noise, as normalized images are distributed; always the same."""
    return np.random.default_rng(0).standard_normal((batch_size, *image_shape), dtype=np.float32)


def time_calls(runner: Runner, prepared: NDArray[np.generic], least: int, most: int, budget_s: float) -> list[float]:
    """Return the milliseconds of each of `least` to `most` calls, of which no further one starts after `budget_s` seconds.

    A call is the one that a user makes: it begins with what the artifact takes, `Runner.prepare`, and ends when its outputs lie in
    the CPU's memory, so that a GPU has finished its work.
    """
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < least or (len(times) < most and time.perf_counter() < end):
        start = time.perf_counter()
        runner.run(prepared)
        times.append(1000.0 * (time.perf_counter() - start))
    return times


def measure_latency(runner: Runner, image_shape: tuple[int, int, int]) -> Latency:
    """Time single images `(C, S, S)` in this process: 10 calls to warm up, then 20 to 200 within about two seconds.

    The machine's other work is in these numbers, and `Latency.loaded` says so; they tell artifacts apart that differ clearly.
    `time_interleaved` tells more.
    """
    prepared = runner.prepare(noise_images(1, image_shape))
    time_calls(runner, prepared, _WARM_UP, _WARM_UP, 0.0)
    with watch_load() as load:
        times = time_calls(runner, prepared, _LEAST_RUNS, _MOST_RUNS, _BUDGET_S)
    kept = tuple(round(time_ms, 4) for time_ms in times)
    return Latency(1, float(np.percentile(times, 50)), float(np.percentile(times, 90)), load.describe(), kept)


def measure_fresh_latency(spec: ModelSpec, image_size: int, device: str) -> float:
    """Return the median time in milliseconds for one image `(C, image_size, image_size)` in FP32 PyTorch.

    The weights are fresh; the time does not depend on their values.
    """
    from convnext_deploy.models.variants import build_model
    from convnext_deploy.runners.torch import TorchRunner

    with forked_random():  # a training in another thread draws from the same generator
        network = build_model(spec).eval()
    runner = TorchRunner(network, device)
    try:
        return measure_latency(runner, (spec.in_channels, image_size, image_size)).p50_ms
    finally:
        runner.close()
