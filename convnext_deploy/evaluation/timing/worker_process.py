"""Run one timing or profile in an isolated process, which ends with this one; its crash becomes an error of one line."""

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError
from convnext_deploy.evaluation.timing._worker import MARK
from convnext_deploy.system.posix import end_group, signals_named

_PROGRAM = "convnext_deploy.evaluation.timing._worker"
_SIGNALS = signals_named(
    SIGKILL="it was killed, as the system does when memory runs out",
    SIGSEGV="its runtime crashed (segmentation fault)",
    SIGILL="its runtime uses instructions that this CPU lacks",
    SIGABRT="its runtime gave up (abort)",
)


@dataclass(frozen=True)
class Job:
    """What a process is to time: calls of batches of `batch_size` images.

    After at least `warm_up` calls and a quarter of the time, `least` to `most` calls are timed within about `seconds`. If
    `profiled`, they are not timed: the result is the kernels that they spent their time in.
    """

    artifact: Artifact
    runner: str | None
    device: str
    batch_size: int
    threads: int | None
    seconds: float
    warm_up: int = 3
    least: int = 10
    most: int = 10_000
    profiled: bool = False


def run_job(job: Job) -> dict[str, Any]:
    """Start a Python process for a job, and return what it found.

    Raises:
        BackendUnavailableError: if the runner cannot be used on this machine.
        ProcessFailedError: if the artifact cannot be run, or the process crashes.
    """
    with tempfile.TemporaryFile() as errors, _started(job.threads, errors) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(base64.b64encode(pickle.dumps(job)) + b"\n")
            process.stdin.flush()  # and it stays open: the process ends when it is closed
        except BrokenPipeError:
            pass  # it crashed before it read; what follows says why
        line = next((line for line in process.stdout if line.startswith(MARK.encode())), None)
        if line is None:
            raise ProcessFailedError(_why(process.wait(), errors))
    found: dict[str, Any] = json.loads(line[len(MARK) :])
    if "unavailable" in found:
        raise BackendUnavailableError(found["unavailable"])
    if "failed" in found:
        raise ProcessFailedError(found["failed"])
    return found


@contextmanager
def _started(threads: int | None, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the program; after the block it and all that it started have ended."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    # -P: a torch.py in the user's folder is not the package
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):  # when it has ended, with nothing left
            end_group(process)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        process.wait()


def _why(code: int, errors: IO[bytes]) -> str:
    """Return in one line why a process ended without an answer."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    last = f"; its last words: {lines[-1][:300]}" if lines else ""
    if code < 0:
        name = signal.Signals(-code)
        return _SIGNALS.get(name, f"it was ended by {name.name}") + last
    return f"it ended with code {code}{last}"
