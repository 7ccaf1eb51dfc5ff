"""Which networks are timed to find what a block costs, and their times: measured once for a machine, a runtime and a form."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from convnext_deploy.compression.probe_files import ProbeForm, ProbeWriter
from convnext_deploy.compression.time_model import TimeModel, fit_times
from convnext_deploy.errors import BackendUnavailableError, OutputError, ProcessFailedError
from convnext_deploy.evaluation.measure import read_kept, write_kept
from convnext_deploy.evaluation.timing.interleaved import Candidate, time_interleaved
from convnext_deploy.evaluation.timing.speedup import usual_threads
from convnext_deploy.metrics.ratios import median_ratio
from convnext_deploy.metrics.rounds import settle_rounds
from convnext_deploy.models.block_shapes import BlockShape, block_shapes, candidate_widths
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.load import watch_load
from convnext_deploy.system.progress import Progress

PROBES = 24
_ROUNDS, _SECONDS = 3, 0.3
_CHECK_ROUNDS, _CHECK_SECONDS = 7, 0.5
_KEPT_WHOLE = 0.5  # share of the networks in which a stage keeps all its blocks
RESULT_VERSION = 1
"""In the key of the times: raised when the files or the networks that are timed are others."""


@dataclass(frozen=True)
class ProbeTimes:
    """Networks that were timed: hidden widths of the blocks of each, and the medians of its processes in ms.

    The first one is dense, with the activation that it has; the others have that of pruned networks.

    `runner`, `threads` (None: as many as the runtime likes) and `batch_size` are those of the calls; `machine` its processor and
    number of cores. `changed_activation`: whether pruned networks have another activation. `loaded` tells in words that the machine
    did other work meanwhile; None: it did not.
    """

    widths: tuple[tuple[int, ...], ...]
    rounds_ms: tuple[tuple[float, ...], ...]
    runner: str
    threads: int | None
    batch_size: int
    machine: str
    loaded: str | None = None
    changed_activation: bool = False

    @property
    def times_ms(self) -> tuple[float, ...]:
        """The time of each network, without the drift of the machine from round to round."""
        return tuple(settle_rounds(self.rounds_ms).tolist())

    def fit(self, shapes: Sequence[BlockShape]) -> TimeModel:
        """Return the model of pruned networks by these times; `shapes`: the blocks of the dense network."""
        first = int(self.changed_activation)
        return fit_times(shapes, self.widths[first:], self.times_ms[first:])


def choose_probes(shapes: Sequence[BlockShape], count: int = PROBES, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Return the hidden widths of the blocks of networks to time, the first one dense.

    The blocks that a model stage keeps have one width. Each stage sees widths all over its range, in an order of its own; in half
    of the networks it keeps all blocks, in the others fewer.

    Args:
        shapes: blocks of the dense network.
        count: of networks, >= 2.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    networks = [[shape.hidden for shape in shapes] for _ in range(count)]
    for stage in {shape.stage: None for shape in shapes}:
        blocks = [place for place, shape in enumerate(shapes) if shape.stage == stage and shape.hidden]
        if not blocks:
            continue
        options = candidate_widths(max(shapes[block].hidden for block in blocks))[1:]
        shares = rng.permutation((np.arange(count - 1) + 0.5) / (count - 1))
        fewer = np.arange(count - 1) % len(blocks)
        kept = np.where(np.arange(count - 1) < _KEPT_WHOLE * (count - 1), len(blocks), fewer)
        for network, share, number in zip(networks[1:], shares, rng.permutation(kept), strict=True):
            for place, block in enumerate(blocks):
                width = options[min(int(share * len(options)), len(options) - 1)]
                network[block] = min(width, shapes[block].hidden) if place < number else 0
    last = max(place for place, shape in enumerate(shapes) if shape.hidden)
    for network in networks:
        if not any(network):  # there is no such network
            network[last] = shapes[last].hidden
    return tuple(map(tuple, networks))


def measure_probes(
    writer: ProbeWriter,
    progress: Progress,
    cache: Path | None,
    run: Path | None = None,
    count: int = PROBES,
    *,
    keep: bool = True,
) -> ProbeTimes:
    """Return the times of networks that tell what a block costs, kept or measured.

    Args:
        writer: of the files.
        progress: where to report.
        cache: where times are kept for all runs, but for those of a machine that did other work; None: nowhere.
        run: where they are kept for one run, whose choice they decide, and are looked for first; None: there is none.
        count: of networks.
        keep: whether they are kept for the run, too; a plan only looks there.

    Raises: BackendUnavailableError, ProcessFailedError: if the files cannot be run here.
    """
    form, environment = writer.form, describe_environment()
    key = _key(form, environment, count)
    files = [None if folder is None else folder / "latency" / f"{key[:32]}.json" for folder in (run, cache)]
    found = next((times for file in files if file and (times := read_kept(ProbeTimes, file, key)) is not None), None)
    if found is None:
        widths = choose_probes(block_shapes(form.spec, form.preprocess.image_size), count)
        if form.activation is not None:  # the dense network in both ways
            widths = (widths[0], *widths)
        machine = f"{environment['cpu']}, {environment['cores']} cores"
        found = time_widths(writer, widths, progress, machine=machine)
    for file in (files[0] if keep else None, files[1] if found.loaded is None else None):
        if file is not None and read_kept(ProbeTimes, file, key) is None:
            try:
                write_kept(file, key, found)
            except OutputError as error:  # a cache that cannot be written ends no run
                progress.say(f"the measured times are not kept: {error}")
    return found


def time_widths(
    writer: ProbeWriter,
    widths: Sequence[Sequence[int]],
    progress: Progress,
    *,
    machine: str = "",
    rounds: int = _ROUNDS,
    seconds: float = _SECONDS,
    threads: int | None = None,
) -> ProbeTimes:
    """Write a file for each of several choices of widths, the first as the network is, and time all in interleaved processes.

    `threads` None: as many as is usual here.

    Raises: BackendUnavailableError, ProcessFailedError: if a file cannot be run here.
    """
    runner, threads = writer.form.target, usual_threads() if threads is None else threads
    with tempfile.TemporaryDirectory(prefix="convnext-deploy-") as name:
        candidates = []
        with progress.task("networks to time", len(widths), "files") as task:
            for number, each in enumerate(widths, 1):
                artifact = writer.write(each, Path(name) / str(number), as_it_is=number == 1)
                candidates.append(Candidate(f"network {number}", artifact, runner, "cpu", 1, threads))
                task.advance()
        with watch_load() as load:
            timings = time_interleaved(candidates, rounds=rounds, seconds=seconds, progress=progress)
    for timing in timings:
        if timing.not_run is not None:
            raise (ProcessFailedError if timing.failed else BackendUnavailableError)(timing.not_run)
    return ProbeTimes(
        tuple(map(tuple, widths)),
        tuple(tuple(process.p50_ms for process in timing.processes) for timing in timings),
        runner,
        threads,
        1,
        machine,
        load.describe(),
        writer.form.activation is not None,
    )


def check_widths(writer: ProbeWriter, widths: Sequence[int], progress: Progress) -> tuple[float, float]:
    """Time a file of these widths beside one of the dense network, before anything is trained for it.

    Returns: milliseconds of a call, and the share of the dense network's time.
    """
    dense = [shape.hidden for shape in block_shapes(writer.form.spec, writer.form.preprocess.image_size)]
    found = time_widths(writer, [dense, widths], progress, rounds=_CHECK_ROUNDS, seconds=_CHECK_SECONDS)
    whole, own = found.rounds_ms
    return median(own), median_ratio(own, whole)[0]


def _key(form: ProbeForm, environment: dict[str, Any], count: int) -> str:
    """Hash what the times depend on: the form of the files, the machine, and the runtime with its threads."""
    told = {name: environment.get(name) for name in ("cpu", "cores", "system", "threads", "variables")}
    versions = {name: environment["versions"].get(name) for name in (form.target, "torch")}  # torch traces the graph
    content = [
        form.spec.settings(),
        form.activation,
        form.preprocess.sides,
        form.target,
        told,
        versions,
        [usual_threads(), count, _ROUNDS, _SECONDS, RESULT_VERSION],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
