"""Compare the speed of an INT8 artifact with that of its float baseline, and find the layers that make it slow.

Both are timed in interleaved, isolated processes on the runtime that they are for; both are profiled there once.
"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError
from convnext_deploy.evaluation.gate import Verdict
from convnext_deploy.evaluation.timing.interleaved import Candidate, relate, time_interleaved
from convnext_deploy.evaluation.timing.layer_times import (
    LayerExcess,
    LayerTime,
    find_excess,
    group_by_layer,
    read_nodes,
)
from convnext_deploy.evaluation.timing.worker_process import Job, run_job
from convnext_deploy.runners.profiling import Kernel
from convnext_deploy.system.distributed import usable_cores
from convnext_deploy.system.load import unreliable, watch_load
from convnext_deploy.system.progress import Progress

ROUNDS = 6  # the fewest whose interval reaches 95 %
SECONDS = 0.5
NOT_SLOWER = 1.0
"""The factor that an INT8 artifact must reach where no gate says otherwise."""

RESULT_VERSION = 2
"""In the key of a speed check: raised when it times or compares in another way, so that it is made again."""
_LEAST_SHARE = 0.01  # of a call, by which a layer must be slower to be named
_MOST_LAYERS = 5


@dataclass(frozen=True)
class Contender:
    """An artifact under its name, and the runner that computes it."""

    name: str
    artifact: Artifact
    runner: str


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the INT8 artifact is as the float one at a batch size: median over rounds and its 95 % interval.

    `ms` and `float_ms` are the medians of the time of a call.
    """

    batch_size: int
    median: float
    low: float
    high: float
    ms: float
    float_ms: float


@dataclass(frozen=True)
class Speed:
    """What was measured of an INT8 artifact and its float baseline.

    `compared_with` names the float artifact, `path` is where it lies, and the runners are those that both were measured with, on
    `device`. `layers`: those that are slower than in float, the worst first; where there is none, those that take longest.
    `loaded` tells in words that the machine did other work meanwhile; None: it did not.
    """

    compared_with: str
    path: str
    runner: str
    float_runner: str
    device: str
    speedups: tuple[Speedup, ...]
    layers: tuple[LayerExcess, ...] = ()
    loaded: str | None = None

    @property
    def worst(self) -> Speedup:
        """The batch size at which INT8 gains least."""
        return min(self.speedups, key=lambda speedup: speedup.median)


def measure_speed(
    ours: Contender, reference: Contender, batch_sizes: Sequence[int], progress: Progress, *, device: str = "cpu"
) -> Speed:
    """Time an INT8 artifact against its float baseline, and profile both.

    Args:
        ours: the INT8 artifact.
        reference: the float one, for the same runtime.
        batch_sizes: images in a call, at least one size; layers are those of the first.
        progress: where to report.
        device: `cpu`, or `cuda` for engines.

    Raises: BackendUnavailableError, ProcessFailedError: if one of them cannot be run.
    """
    with watch_load() as load:
        speedups = tuple(_time_both(ours, reference, size, device, progress) for size in batch_sizes)
    with progress.task(f"{ours.name}: profile", 2, "processes") as task:
        layers = []
        for contender in (ours, reference):
            layers.append(_layer_times(contender, batch_sizes[0], device))
            task.advance()
    return Speed(
        reference.name,
        str(reference.artifact.location),
        ours.runner,
        reference.runner,
        device,
        speedups,
        _responsible(find_excess(*layers)),
        load.describe(),
    )


def _time_both(ours: Contender, reference: Contender, size: int, device: str, progress: Progress) -> Speedup:
    candidates = [Candidate(c.name, c.artifact, c.runner, device, size, usual_threads()) for c in (ours, reference)]
    int8, in_float = time_interleaved(candidates, rounds=ROUNDS, seconds=SECONDS, progress=progress)
    for timing in (int8, in_float):
        if timing.not_run is not None:
            error = ProcessFailedError if timing.failed else BackendUnavailableError
            raise error(f"{timing.candidate.name}: {timing.not_run}")
    ratio = relate(in_float, int8)
    times = [statistics.median(p.p50_ms for p in timing.processes) for timing in (int8, in_float)]
    assert ratio is not None  # both have run
    return Speedup(size, ratio.median, ratio.low, ratio.high, *times)


def usual_threads() -> int | None:
    """Return how many threads a runtime is given: None, as many as it likes, unless this process may not use all cores."""
    return None if usable_cores() == os.cpu_count() else usable_cores()


def _layer_times(contender: Contender, batch_size: int, device: str) -> tuple[LayerTime, ...]:
    """Profile an artifact in a process of its own; nothing where its runtime has no profile."""
    job = Job(
        contender.artifact, contender.runner, device, batch_size, usual_threads(), SECONDS, most=64, profiled=True
    )
    try:
        found = run_job(job)["kernels"]
    except (BackendUnavailableError, ProcessFailedError):
        return ()  # the times are measured; the reason then says that no layers are known
    kernels = [Kernel(**{**kernel, "nodes": tuple(kernel["nodes"])}) for kernel in found]
    return group_by_layer(kernels, read_nodes(contender.artifact))


def _responsible(layers: Sequence[LayerExcess]) -> tuple[LayerExcess, ...]:
    slower = [layer for layer in layers if layer.share >= _LEAST_SHARE]
    return tuple((slower or sorted(layers, key=lambda layer: -layer.ms))[:_MOST_LAYERS])


def judge_speed(speed: Speed, min_speedup: float | None) -> Verdict:
    """Say whether an INT8 artifact is fast enough at every batch size; `min_speedup` None: not slower than float.

    The median decides, and the interval tells whether that is `proven`; on a machine that did other work meanwhile nothing is, and
    a median that the interval contradicts decides nothing either.
    """
    wanted = NOT_SLOWER if min_speedup is None else min_speedup
    slow = [speedup for speedup in speed.speedups if speedup.median < wanted]
    failed = [speedup for speedup in slow if speed.loaded is None or speedup.high < wanted]
    if failed:
        reasons = [f"{_describe(speedup, speed, wanted)}, and {_wanted(wanted)}" for speedup in failed]
        proven = any(speedup.high < wanted for speedup in failed)
        if not proven:
            reasons[-1] += " (not proven: the interval reaches further)"
        if speed.loaded is not None:
            reasons.append(unreliable(speed.loaded))
            proven = False
        ship = f"ship {speed.compared_with} instead: {speed.path}"
        return Verdict(False, (*reasons, describe_layers(speed), ship), proven)
    proven = all(speedup.low >= wanted for speedup in speed.speedups)
    notes = describe_speed(speed)
    if not proven:
        ends = "ends above" if slow else "begins below"
        median = "the median is below" if slow else "passed by the median"
        notes[-1] += f"; {median}, and the interval {ends} the {wanted:g}× asked for"
    if speed.loaded is not None:
        again = (
            "; whether it reaches that is not known, time it again on a free machine: --measure-again" if slow else ""
        )
        notes.append(unreliable(speed.loaded) + again)
        proven = False
    return Verdict(True, proven=proven, notes=tuple(notes))


def _wanted(factor: float) -> str:
    return "INT8 must not be slower" if factor == NOT_SLOWER else f"{factor:g}× is asked for"


def _describe(speedup: Speedup, speed: Speed, wanted: float | None = None) -> str:
    # where two digits would show what was asked for, and less was measured
    shown = [f"{factor:.2f}" for factor in (speedup.median, speedup.low, speedup.high)]
    places = 2 if wanted is None or f"{wanted:.2f}" not in shown else 4
    images = "single images" if speedup.batch_size == 1 else f"batches of {speedup.batch_size}"
    runners = speed.runner if speed.runner == speed.float_runner else f"{speed.runner} and {speed.float_runner}"
    interval = f"95 %: {speedup.low:.{places}f} to {speedup.high:.{places}f}"
    return (
        f"{speedup.median:.{places}f}× as fast as {speed.compared_with} [{interval}] on {runners}, {images}: "
        f"{speedup.ms:.2f} ms, float {speedup.float_ms:.2f} ms"
    )


def describe_speed(speed: Speed) -> list[str]:
    """Return a line for each batch size."""
    return [_describe(speedup, speed) for speedup in speed.speedups]


def describe_layers(speed: Speed) -> str:
    """Return in a line which layers make an INT8 artifact slow."""
    if not speed.layers:
        return "which layers are slow is not known: the runtime gave no profile"
    if speed.layers[0].share < _LEAST_SHARE:
        longest = "; ".join(
            f"{layer.layer} {layer.ms:.3f} ms, float {layer.reference_ms:.3f} ms" for layer in speed.layers
        )
        return f"no layer is slower than in float; the longest: {longest}"
    named = []
    for layer in speed.layers:
        more = f"more by {100 * layer.share:.0f} % of all kernels under the profiler"
        text = f"{layer.layer} {layer.ms:.3f} ms, float {layer.reference_ms:.3f} ms ({more}"
        if layer.conversions_ms >= layer.ms / 4:
            text += f", {layer.conversions_ms:.3f} ms of it conversions"
        named.append(f"{text})")
    return f"layers responsible: {'; '.join(named)}"
