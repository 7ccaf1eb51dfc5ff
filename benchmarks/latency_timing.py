"""How `latency.py` times: every candidate in interleaved, isolated processes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError
from convnext_deploy.evaluation.timing.worker_process import Job, run_job

Timer = Callable[[], float]
"""Times a candidate once, in a fresh process, in milliseconds."""
_CHILD = Path(__file__).resolve().parent / "latency_child.py"


def run_artifact(artifact: Artifact, runner: str, batch_size: int, arguments: argparse.Namespace) -> float:
    """Time an artifact in a fresh process, in milliseconds."""
    found = run_job(Job(artifact, runner, "cpu", batch_size, arguments.threads, arguments.seconds))
    return float(found["times"]["p50_ms"])


@dataclass(frozen=True)
class Pair:
    """Medians of the times of our calls and of the runtime's own, and of the ratio of each pair."""

    ours_ms: float
    runtime_ms: float
    ratio: float


def run_pair(artifact: Artifact, runner: str, batch_size: int, arguments: argparse.Namespace) -> Pair:
    """Time our calls and the runtime's own in a fresh process, in milliseconds, see `latency_own_call.py`."""
    found = _run_child(["own-call", str(artifact.path), runner], batch_size, min(artifact.preprocess.sides), arguments)
    return Pair(**found)


def run_child(what: list[str], batch_size: int, image_size: int, arguments: argparse.Namespace) -> float:
    """Time what `latency_child.py` knows in a fresh process, in milliseconds."""
    return float(_run_child(what, batch_size, image_size, arguments)["p50_ms"])


def _run_child(what: list[str], batch_size: int, image_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(_CHILD), *what, "--batch-size", str(batch_size), "--image-size", str(image_size)]
    command += ["--seconds", str(arguments.seconds)]
    environment = dict(os.environ)
    if arguments.threads is not None:
        command += ["--threads", str(arguments.threads)]
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"code {done.returncode}"]
        raise ProcessFailedError(last[0])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def time_in_turns(timers: dict[str, Timer], rounds: int, label: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return for each name its time in every round, or why it was not run."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    not_run: dict[str, str] = {}
    for number in range(rounds):
        for name, time_once in timers.items():
            if name in not_run:
                continue
            try:
                times[name].append(time_once())
            except (BackendUnavailableError, ProcessFailedError) as error:
                not_run[name], times[name] = str(error), []
        shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in times.items() if values)
        print(f"{label}, round {number + 1} of {rounds}: {shown}", file=sys.stderr, flush=True)
    return times, not_run
