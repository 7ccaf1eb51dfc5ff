"""Find out whether packages can be imported, in child processes: one that crashes or hangs does so there."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext_deploy.system.posix import end_group

_PROGRAM = Path(__file__).with_name("import_probe.py")


@dataclass(frozen=True)
class Probe:
    """What became of importing a module: it is `missing`, or `error` says why it cannot be imported, or it can.

    `version` is what the module itself says, `facts` what was asked of it.
    """

    missing: bool = False
    error: str | None = None
    version: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether it can be imported."""
        return not self.missing and self.error is None


def probe(chains: Sequence[Sequence[str]], timeout_s: float) -> dict[str, Probe]:
    """Import modules as this process would find them, each chain in a process of its own, all of them at once.

    Args:
        chains: names of modules; those of a chain are imported one after the other, so that they share what they have in common.
            What comes after one that crashes or hangs is tried in another process.
        timeout_s: longest time for a process.
    """
    found: dict[str, Probe] = {}
    waiting = [list(chain) for chain in chains if chain]
    while waiting:
        started = [(chain, _start(chain), time.monotonic()) for chain in waiting]
        waiting = []
        for chain, process, begun in started:
            answers, end = _finish(process, max(0.0, begun + timeout_s - time.monotonic()))
            told = _read(answers)
            found |= told
            rest = [module for module in chain if module not in told]
            if rest:
                found[rest[0]] = Probe(error=end or f"it is still being imported after {timeout_s:g} s")
                if rest[1:]:
                    waiting.append(rest[1:])
    return found


def _start(chain: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(_PROGRAM), json.dumps(sys.path), *chain],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # whatever a package starts ends with it
    )


def _finish(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, str | None]:
    """Wait for a process and return its answers and how it ended, None where it was ended for taking too long."""
    try:
        answers, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return process.communicate()[0], None
    except BaseException:
        _end(process)
        raise
    code = process.returncode
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return answers, f"importing it ends the process ({name})"
    return answers, f"importing it ends the process (exit code {code})"


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        end_group(process)


def _read(answers: bytes) -> dict[str, Probe]:
    found: dict[str, Probe] = {}
    for line in answers.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            content = json.loads(line)
            module = content.pop("module")
            found[module] = Probe(**content)
    return found
