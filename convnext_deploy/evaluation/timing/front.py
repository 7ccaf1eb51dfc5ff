"""Accuracy against latency of networks that are to replace one: all timed together, each beside the one that it replaces."""

from collections.abc import Sequence
from dataclasses import dataclass

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import LatencyGoal
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError
from convnext_deploy.evaluation.gate import Verdict
from convnext_deploy.evaluation.timing.interleaved import Candidate, Timing, relate, time_interleaved
from convnext_deploy.evaluation.timing.speedup import usual_threads
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.system.load import unreliable, watch_load
from convnext_deploy.system.progress import Progress

ROUNDS = 9  # whose interval leaves out the fastest and the slowest
SECONDS = 0.5
RESULT_VERSION = 2
"""In the key of what is kept: raised when it is timed or compared in another way."""


@dataclass(frozen=True)
class TimedPoint:
    """An artifact of the stage `name` that was timed: `ms` for a batch, and its 95 % interval.

    `ratio` to the artifact of `against`, with its 95 % interval: the median of the rounds; of what is only compared with, 1.
    `predicted_ratio`: what the search of widths expected. `max_ratio`, `max_ms`: what is asked for.
    """

    name: str
    path: str
    runner: str
    ms: float
    ms_interval: tuple[float, float]
    against: str
    ratio: float = 1.0
    ratio_interval: tuple[float, float] = (1.0, 1.0)
    predicted_ratio: float | None = None
    max_ratio: float | None = None
    max_ms: float | None = None

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with it."""
        return self.name == self.against

    @property
    def prediction_error(self) -> float | None:
        """By what share the prediction was too large; None: there was none.

        Of the ratio: a machine that is slower today than when widths were timed is so for both.
        """
        return None if self.predicted_ratio is None else self.predicted_ratio / self.ratio - 1


@dataclass(frozen=True)
class ExploredPoint:
    """A choice of widths that was looked at before any training, for the front that was predicted.

    `predicted_ms`, also as a share of the dense network's; `loss`: the sum of the losses of its blocks; `kl`: the divergence of its
    class probabilities from the dense network's on the selection images, in nats, and `agreement` the share of equal first guesses,
    both without any training; None: it was not measured.
    """

    predicted_ms: float
    ratio: float
    loss: float
    kl: float | None = None
    agreement: float | None = None
    widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Front:
    """What was timed together on `device`, and what was explored before. `loaded` tells in words of other work meanwhile."""

    points: tuple[TimedPoint, ...]
    explored: tuple[ExploredPoint, ...] = ()
    device: str = "cpu"
    loaded: str | None = None

    def of(self, name: str) -> TimedPoint | None:
        """Return the point of a stage that has a goal; None: it has none."""
        return next((point for point in self.points if point.name == name and not point.is_reference), None)


def time_front(
    goals: Sequence[LatencyGoal], artifacts: dict[str, tuple[Artifact, str, str]], batch_size: int, progress: Progress
) -> Front:
    """Time artifacts and those that they are compared with.

    Args:
        goals: at least one.
        artifacts: name of a stage → its artifact, the runner that it is for, and the device.
        batch_size: images of a call.
        progress: where to report.

    Raises: BackendUnavailableError, ProcessFailedError: if one of them cannot be run.
    """
    names = list(dict.fromkeys([*(goal.against for goal in goals), *(goal.stage for goal in goals)]))
    candidates = [
        Candidate(name, artifact, runner, device, batch_size, usual_threads())
        for name in names
        for artifact, runner, device in [artifacts[name]]
    ]
    with watch_load() as load:
        found = dict(
            zip(names, time_interleaved(candidates, rounds=ROUNDS, seconds=SECONDS, progress=progress), strict=True)
        )
    for timing in found.values():
        if timing.not_run is not None:
            error = ProcessFailedError if timing.failed else BackendUnavailableError
            raise error(f"{timing.candidate.name}: {timing.not_run}")
    references = [_point(found[name], found[name], None) for name in dict.fromkeys(goal.against for goal in goals)]
    points = [_point(found[goal.stage], found[goal.against], goal) for goal in goals]
    return Front((*references, *points), (), next(iter(found.values())).device, load.describe())


def _point(timing: Timing, reference: Timing, goal: LatencyGoal | None) -> TimedPoint:
    times = [process.p50_ms for process in timing.processes]
    ms, low, high = median_ratio(times, [1.0] * len(times))
    ratio = relate(timing, reference)
    assert ratio is not None  # both have run
    artifact = timing.candidate.artifact
    return TimedPoint(
        timing.candidate.name,
        str(artifact.place),
        timing.runner,
        ms,
        (low, high),
        reference.candidate.name,
        ratio.median,
        (ratio.low, ratio.high),
        None if goal is None else goal.predicted_ratio,
        None if goal is None else goal.max_ratio,
        None if goal is None else goal.max_ms,
    )


def judge_latency(point: TimedPoint, loaded: str | None) -> Verdict:
    """Say whether an artifact is as fast as it is to be; the medians decide, and the intervals tell whether that is proven."""
    limits = [
        (point.ratio, point.ratio_interval, point.max_ratio, f"{point.ratio:.3f} of the time of {point.against}", "×"),
        (point.ms, point.ms_interval, point.max_ms, f"{point.ms:.3f} ms", " ms"),
    ]
    reasons: list[str] = []
    notes: list[str] = []
    proven = True
    judged = [(value, interval, most, text, unit) for value, interval, most, text, unit in limits if most is not None]
    if not judged:
        return Verdict()
    for value, (low, high), most, text, unit in judged:
        assert most is not None  # those are left out
        words = f"takes {text} [95 %: {low:.3f} to {high:.3f}] on {point.runner}; {most:g}{unit} was asked for"
        (notes if value <= most else reasons).append(words)
        proven &= high <= most if value <= most else low > most
    if loaded is not None:
        notes.append(unreliable(loaded))
        proven = False
    return Verdict(not reasons, tuple(reasons), proven, notes=tuple(notes))
