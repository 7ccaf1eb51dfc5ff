"""`bench`: which artifact is the fastest here, each with its runners and batch sizes, in interleaved, isolated processes."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.api.open_inputs import open_artifacts
from convnext_deploy.api.options import DataOptions, ExecutionOptions, verb
from convnext_deploy.artifacts.artifact import Artifact, quantized_type
from convnext_deploy.config.image_size import show_size
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError, RecipeError, RunnerError
from convnext_deploy.evaluation.timing.interleaved import ROUNDS, SECONDS, Candidate, Timing, relate, time_interleaved
from convnext_deploy.runners import RUNNERS, check_runner, default_runner, runners_of
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.execution import resolve_device
from convnext_deploy.system.load import unreliable, watch_load
from convnext_deploy.system.results import Result

SCHEMA = 1
_FIGURES = ("p50_ms", "p90_ms", "p99_ms", "images_per_s", "load_s", "peak_memory_bytes", "power_w", "temperature_c")


@dataclass(frozen=True, repr=False)
class Benchmark(Result):
    """What was timed, where, and how long all of it took.

    `notes` say in words what a reader of the figures should know, such as that an INT8 artifact is not faster than a float one, or
    that the machine did other work meanwhile.
    """

    timings: tuple[Timing, ...]
    rounds: int
    seconds: float
    wall_s: float
    environment: Mapping[str, Any]
    notes: tuple[str, ...]

    def headline(self) -> str:
        """Say what was timed, and which was the fastest of the smallest batch."""
        ran = [timing for timing in self.timings if timing.processes]
        first = min((timing.candidate.batch_size for timing in ran), default=1)
        times = {t.label: t.median("p50_ms") or 0.0 for t in ran if t.candidate.batch_size == first}
        fastest = min(times, key=lambda label: times[label])
        return f"{len(ran)} timed in {self.wall_s:.0f} s; fastest at batch {first}: {fastest}, {times[fastest]:.2f} ms"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each artifact, runner and batch size; figures are medians over the processes."""
        records = map(_record, self.timings)
        return [
            {
                **{key: value for key, value in record.items() if key not in ("ratio", "processes")},
                **_flat_ratio(record),
            }
            for record in records
        ]

    def to_json(self) -> str:
        """Return what `--json` prints. Each figure of an artifact is the median over its processes, which follow."""
        record = {
            "schema": SCHEMA,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "wall_s": self.wall_s,
            "environment": self.environment,
            "notes": self.notes,
            "timings": [_record(timing) for timing in self.timings],
        }
        return json.dumps(record, indent=1)


@verb
def bench(
    artifacts: Path | str | Sequence[Path | str],
    *,
    runners: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    data: DataOptions = DataOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Benchmark:
    """Time artifacts against each other, in interleaved, isolated processes.

    Args:
        artifacts: one or several folders, files or names of published weights. Ratios are to the first one of the same batch size.
        runners: names of `runners.RUNNERS`; each artifact is timed with all that open its format. Empty: with its default.
        batch_sizes: images per call, each >= 1.
        threads: threads of one call on the CPU; None: as each backend does.
        rounds: processes for each artifact, runner and batch size; six are needed for an interval of 95 %.
        seconds: about how long each process times calls.
        data: `image_size`, `output_name` and `input_range` count.
        execution: `device` and `progress` count.

    Raises:
        RecipeError: if a number is out of range, or nothing is given.
        RunnerError: if there is no such runner, or it opens none of the artifacts, or none of them opens an artifact.
        ArtifactError, CheckpointError: if an artifact cannot be opened.
        BackendUnavailableError: if no artifact can be run on this machine.
        ProcessFailedError: if nothing could be timed, and not for lack of a backend.
    """
    artifacts = [artifacts] if isinstance(artifacts, str | Path) else artifacts
    _check_numbers(batch_sizes, threads, rounds, seconds)
    for name in runners:
        check_runner(name)
    start = time.perf_counter()
    device = resolve_device(execution.device or "auto")
    opened = open_artifacts(artifacts, None, data, execution.reporter)
    if not opened:
        raise RecipeError("no artifact was given; expected at least one folder or file.")
    chosen = _choose_runners(opened, runners)
    names = _names([str(path) for path in artifacts])
    candidates = [
        Candidate(name, artifact, runner, device, batch_size, threads)
        for batch_size in dict.fromkeys(batch_sizes)
        for name, artifact, its_runners in zip(names, opened, chosen, strict=True)
        for runner in its_runners
    ]
    with watch_load() as load:
        timings = time_interleaved(candidates, rounds=rounds, seconds=seconds, progress=execution.reporter)
    _check_any_ran(timings)
    loaded = load.describe()
    notes = (*_notes_on_sizes(timings), *_notes_on_batches(timings), *_notes_on_8_bits(timings))
    notes += () if loaded is None else (unreliable(loaded),)
    return Benchmark(timings, rounds, seconds, time.perf_counter() - start, describe_environment(), notes)


def _check_numbers(batch_sizes: Sequence[int], threads: int | None, rounds: int, seconds: float) -> None:
    wrong = [
        *(f"batch_size = {size}" for size in batch_sizes if size < 1),
        *([f"threads = {threads}"] if threads is not None and threads < 1 else []),
        *([f"rounds = {rounds}"] if rounds < 1 else []),
    ]
    if wrong:
        raise RecipeError(f"{wrong[0]} is out of range; expected >= 1.")
    if not batch_sizes:
        raise RecipeError("no batch size was given; expected at least one, such as 1.")
    if not 0 < seconds < float("inf"):
        raise RecipeError(f"seconds = {seconds} is out of range; expected > 0.")


def _choose_runners(artifacts: Sequence[Artifact], runners: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the runners of each artifact: those asked for that open its format, or its default."""
    if not runners:
        return [(default_runner(artifact),) for artifact in artifacts]
    asked = tuple(dict.fromkeys(runners))
    chosen = [tuple(name for name in asked if RUNNERS[name] == artifact.format) for artifact in artifacts]
    for artifact, names in zip(artifacts, chosen, strict=True):
        if not names:
            raise RunnerError(
                f"{artifact.location} is in the format {artifact.format}, which {' and '.join(asked)} cannot open; "
                f"name one of {', '.join(runners_of(artifact))} too."
            )
    for name in asked:
        if not any(name in names for names in chosen):
            raise RunnerError(
                f"the runner {name} opens artifacts in the format {RUNNERS[name]}, and none was given; leave it out."
            )
    return chosen


def _names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each path, all different: its last part, or all of it where others end alike."""
    lasts = {path: Path(path).name or path for path in paths}
    ends = Counter(lasts.values())  # of different paths
    names: list[str] = []
    seen: Counter[str] = Counter()
    for path in paths:
        name = lasts[path] if ends[lasts[path]] == 1 else path
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _check_any_ran(timings: Sequence[Timing]) -> None:
    if any(timing.processes for timing in timings):
        return
    worst = next((timing for timing in timings if timing.failed), timings[0])
    more = f" (and {len(timings) - 1} more)" if len(timings) > 1 else ""
    kind = ProcessFailedError if worst.failed else BackendUnavailableError
    raise kind(f"nothing was timed: {worst.label}: {worst.not_run}{more}")


def _notes_on_batches(timings: Sequence[Timing]) -> Iterator[str]:
    for timing in timings:
        artifact, asked = timing.candidate.artifact, timing.candidate.batch_size
        if timing.processes and artifact.format != "torch" and (frozen := artifact.io.batch_size) not in (None, asked):
            parts = "is filled up" if frozen is not None and frozen > asked else "is run in parts"
            yield f"{timing.label} has a frozen batch of {frozen}, so that a batch of {asked} {parts}"


def _notes_on_8_bits(timings: Sequence[Timing]) -> Iterator[str]:
    """Say of each INT8 or FP8 artifact that it is not faster than the fastest float one of the same batch size and device."""
    for timing in timings:
        candidate = timing.candidate
        if not timing.processes or (kind := quantized_type(candidate.artifact.precision)) is None:
            continue
        floats = [
            other
            for other in timings
            if other.processes
            and quantized_type(other.candidate.artifact.precision) is None
            and (other.candidate.batch_size, other.device) == (candidate.batch_size, timing.device)
        ]
        if not floats:
            continue
        fastest = min(floats, key=lambda other: other.median("p50_ms") or 0.0)
        ratio = relate(timing, fastest)
        if ratio is None or ratio.high < 1:
            continue
        faster = "not faster" if ratio.median >= 1 else "not clearly faster"
        why = ""
        if candidate.artifact.format == "torch":
            why = f"; PyTorch only simulates {kind}: export it to ONNX or an engine"
        yield (
            f"{timing.label} is {kind} and {faster} than {fastest.label} ({fastest.candidate.artifact.precision}) at batch "
            f"{candidate.batch_size}: {ratio.median:.2f}× its time [{ratio.low:.2f}, {ratio.high:.2f}]{why}"
        )


def _notes_on_sizes(timings: Sequence[Timing]) -> Iterator[str]:
    sizes = {timing.candidate.name: show_size(timing.candidate.artifact.preprocess.image_size) for timing in timings}
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield f"the images have different sizes, and the times tell that too, in pixels: {named} (--image-size sets one for all)"


def _flat_ratio(record: Mapping[str, Any]) -> dict[str, Any]:
    ratio = record["ratio"] or dict.fromkeys(("to", "median", "low", "high"))
    return {"ratio_to": ratio["to"], **{f"ratio_{name}": ratio[name] for name in ("median", "low", "high")}}


def _record(timing: Timing) -> dict[str, Any]:
    candidate, artifact = timing.candidate, timing.candidate.artifact
    return {
        "name": candidate.name,
        "path": str(artifact.location),
        "sha256": artifact.sha256,
        "variant": artifact.model.variant,
        "format": artifact.format,
        "precision": artifact.precision,
        "size_bytes": artifact.size_bytes,
        "image_size": artifact.preprocess.image_size,
        "runner": timing.runner,
        "device": timing.device,
        "batch_size": candidate.batch_size,
        "threads": candidate.threads,
        **{figure: timing.median(figure) for figure in _FIGURES},
        "ratio": None if timing.ratio is None else dataclasses.asdict(timing.ratio),
        "not_run": timing.not_run,
        "failed": timing.failed,
        "processes": [dataclasses.asdict(process) for process in timing.processes],
    }
