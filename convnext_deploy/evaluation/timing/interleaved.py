"""Time artifacts against each other on a machine that drifts: in interleaved, isolated processes.

A process can be slower than the next one for its whole life, by half, whatever it runs, and a machine gets slower and faster over
minutes. So no figure here is from one process, and ratios compare processes that ran one after the other.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError
from convnext_deploy.evaluation.timing.worker_process import Job, run_job
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.system.progress import Progress, SilentProgress

ROUNDS = 7
SECONDS = 2.0


@dataclass(frozen=True)
class Candidate:
    """What is timed: calls of `Runner.run` with `batch_size` images, which are what the artifact takes before the clock starts.

    `runner` None: the usual one of the format; `threads` None: as many as the runner likes.
    """

    name: str
    artifact: Artifact
    runner: str | None = None
    device: str = "cpu"
    batch_size: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class ProcessTimes:
    """What one process measured.

    Percentiles of the time of a call in milliseconds; `images_per_s` over all `calls`. `load_s`: from opening the artifact, with
    the import of its runtime, to the first outputs. `peak_memory_bytes`: the most CPU memory that was resident. `power_w`, the
    mean, and `temperature_c`, the highest, are those of the GPU; None without one or without `nvidia-ml-py`.
    """

    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    load_s: float
    peak_memory_bytes: int
    power_w: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True)
class Ratio:
    """The time of a call, as a multiple of that of another candidate: median over rounds, and its 95 % interval.

    Below 1 it is faster, and clearly so if `high` is below 1. The interval is that of the sign test (`ratios.median_ratio`).
    """

    to: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """What the processes of a candidate found, in the order of the rounds.

    `not_run` says why there are none; `failed` tells whether that is an error, and not just a backend that is not here.
    """

    candidate: Candidate
    runner: str
    device: str
    processes: tuple[ProcessTimes, ...] = ()
    ratio: Ratio | None = None
    not_run: str | None = None
    failed: bool = False

    @property
    def label(self) -> str:
        """The candidate and its runner, in words."""
        return f"{self.candidate.name} on {self.runner}" if self.runner else self.candidate.name

    def median(self, name: str) -> float | None:
        """Return the median over processes of a field of `ProcessTimes`; None if it was not measured."""
        values = [value for process in self.processes if (value := getattr(process, name)) is not None]
        return statistics.median(values) if values else None


def time_interleaved(
    candidates: Sequence[Candidate], *, rounds: int = ROUNDS, seconds: float = SECONDS, progress: Progress | None = None
) -> tuple[Timing, ...]:
    """Time candidates in rounds, each of which gives every candidate a process of its own, one after the other.

    A candidate that cannot be run is left out from then on, and says why.

    Args:
        candidates: in the order of their turns. Ratios are to the first of the same batch size that was run; `relate` gives others.
        rounds: >= 1; fewer than six give intervals of less than 95 %.
        seconds: about how long each process times calls, after warming up.
        progress: where to report; None: nowhere.

    Returns: a result for each candidate, in their order.
    """
    timings = [Timing(candidate, candidate.runner or "", candidate.device) for candidate in candidates]
    with (progress or SilentProgress()).task("timing", rounds * len(timings), "processes") as task:
        for _ in range(rounds):
            for place, before in enumerate(timings):
                timings[place] = timing = _time_once_more(before, seconds)
                found = f"{timing.runner} {timing.processes[-1].p50_ms:.2f} ms" if timing.processes else "not run"
                task.advance(note=f"{timing.candidate.name} {found}")
    return tuple(replace(timing, ratio=relate(timing, _reference(timing, timings))) for timing in timings)


def _time_once_more(timing: Timing, seconds: float) -> Timing:
    """Return a timing with one more process; one that cannot be run is left as it is, and says why."""
    c = timing.candidate
    if timing.not_run is not None:
        return timing
    try:
        found = run_job(Job(c.artifact, c.runner, c.device, c.batch_size, c.threads, seconds))
    except (BackendUnavailableError, ProcessFailedError) as error:
        return replace(timing, processes=(), not_run=str(error), failed=isinstance(error, ProcessFailedError))
    processes = (*timing.processes, ProcessTimes(**found["times"]))
    return replace(timing, runner=found["runner"], device=found["device"], processes=processes)


def relate(timing: Timing, reference: Timing) -> Ratio | None:
    """Return the ratio of the median times, paired by round; None if one of them was not run.

    Raises: ValueError: if they were not timed in the same rounds.
    """
    if not timing.processes or not reference.processes:
        return None
    ours, theirs = ([process.p50_ms for process in each.processes] for each in (timing, reference))
    return Ratio(reference.label, *median_ratio(ours, theirs))


def _reference(timing: Timing, timings: Sequence[Timing]) -> Timing:
    """Return the first that was run of those with the same batch size, or the timing itself."""
    size = timing.candidate.batch_size
    return next((other for other in timings if other.processes and other.candidate.batch_size == size), timing)
