"""Processes of the drills: started in a session of their own, signalled, waited for with a limit, and judged by what they left."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 600.0  # a command that takes longer hangs
_MEMORY = 8 << 30  # bytes of addresses: a reader without bounds is to fail, not to take the machine with it
_GRACE_S = 15.0  # within which loader processes notice that their parent is gone
# what no user should read; "resource_tracker" reports memory and semaphores that were not given back
_TRACES = (
    "Traceback (most recent call last)", "Fatal Python error", "Segmentation fault", "core dumped", "Exception ignored",
    "terminate called", "resource_tracker", "Bus error",
)  # fmt: skip
_PRELOADED = (
    "torch", "onnx", "convnext_deploy.cli", "convnext_deploy.pipeline.run", "convnext_deploy.stages.onnx",
    "convnext_deploy.stages.distill", "convnext_deploy.stages.ptq", "convnext_deploy.api.run",
)  # fmt: skip


Words = list[str | Path]


class NotRunError(Exception):
    """A drill needs what this machine or this user does not have; its text says what."""


@dataclass(frozen=True)
class Ended:
    """What a process left. `code` None: it hung and was killed; `stray`: processes of its own outlived it."""

    code: int | None
    out: str
    err: str
    seconds: float
    stray: bool = False

    @property
    def last_line(self) -> str:
        """The last line on standard error that is not empty."""
        return next((line for line in reversed(self.err.splitlines()) if line.strip()), "")

    def fault(self, codes: Collection[int]) -> str:
        """Return what is wrong with it, given the exit codes that are as they should be; empty if nothing is."""
        if self.code is None:
            return f"hangs: no end after {self.seconds:.0f} s"
        for stream in (self.err, self.out):
            for trace in _TRACES:
                if trace in stream:
                    return f"'{trace}', exit code {self.code}: {_end_of(stream)}"
        if self.code not in codes:
            return f"exit code {self.code} instead of {' or '.join(map(str, sorted(codes)))}: {_end_of(self.err)}"
        if self.stray:
            return "processes of its own were still there afterwards"
        if self.code == 1:
            errors = [line for line in self.err.splitlines() if line.startswith("error")]
            if len(errors) != 1 or not self.last_line.startswith("error"):
                return f"does not end in one line that begins with 'error': {_end_of(self.err)}"
        elif self.code > 0 and not self.last_line:
            return f"exit code {self.code} without a word"
        return ""


class Process:
    """A command of `convnext-deploy` that runs.

    A fresh one is `python -m convnext_deploy …`. Others are forked from a process that has imported the package already, which
    saves seconds; everything after the imports is the same.
    """

    def __init__(
        self,
        words: Words,
        log: Path,
        *,
        fresh: bool = True,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            words: what follows the name of the program.
            log: files of this name with `.out` and `.err` get what it prints.
            fresh: not forked.
            environment: of a fresh one; None: `plain_environment()`.
            cwd: where it works; None: the folder of `log`.
            prefix: a program that starts the fresh one, with its arguments.
        """
        texts = [str(word) for word in words]
        self._out, self._err, self._start = log.with_suffix(".out"), log.with_suffix(".err"), time.monotonic()
        cwd = cwd or log.parent
        if fresh:
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._process: subprocess.Popen[bytes] | multiprocessing.process.BaseProcess = subprocess.Popen(
                    [*prefix, sys.executable, "-m", "convnext_deploy", *texts],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, start_new_session=True,
                    env=dict(environment or plain_environment()),
                )  # fmt: skip
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(_PRELOADED))
            self._process = context.Process(target=_work, args=(texts, self._out, self._err, cwd))
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def has_ended(self, within_s: float = 0.0) -> bool:
        """Return whether it ends within some seconds."""
        if isinstance(self._process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(within_s)
            return self._process.returncode is not None
        self._process.join(within_s)
        return self._process.exitcode is not None

    def has_children(self) -> bool:
        """Return whether it has started processes."""
        with suppress(OSError):
            return any(path.read_text().strip() for path in Path(f"/proc/{self.pid}/task").glob("*/children"))
        return False

    def signal(self, number: int, *, to_all: bool = False) -> None:
        """Send a signal to it, or to its children too, as a terminal and many schedulers do."""
        with suppress(ProcessLookupError):
            if to_all and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Return what it left once it has ended; whatever happens, nothing of it runs afterwards."""
        hangs = not self.has_ended(limit_s)
        seconds = time.monotonic() - self._start
        end = time.monotonic() + (0.0 if hangs else _GRACE_S)
        while (stray := _is_alive(self.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        self.kill()
        process = self._process
        code = process.returncode if isinstance(process, subprocess.Popen) else process.exitcode
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in (self._out, self._err) if path.exists())
        out, err = next(texts, ""), next(texts, "")
        return Ended(None if hangs else code, out, err, seconds, stray)

    def kill(self) -> None:
        """Let nothing of it run any more."""
        if not self.has_ended():
            self.signal(signal.SIGKILL)
        if _is_alive(self.pid):  # as long as one is there, no other process gets this number
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.has_ended(_GRACE_S)


def plain_environment(**changes: str | None) -> dict[str, str]:
    """Return the environment of the drills: one thread each, this checkout's package; None takes a variable out."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    wanted = {**kept, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in wanted.items() if value is not None}


def _work(words: list[str], out: Path, err: Path, cwd: Path) -> None:
    """Be `convnext-deploy` in a forked process."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for path, stream in ((out, 1), (err, 2)):
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(number, stream)
        os.close(number)
    os.chdir(cwd)
    sys.argv = ["convnext-deploy", *words]
    from convnext_deploy.cli import main

    main()


def _is_alive(session: int) -> bool:
    """Return whether a process of a session is there that has not ended, whoever its parent is."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, found = path.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(found) == session and state not in "ZX":
                return True
    return False


def _end_of(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-2:])[-300:] or "nothing was said"
