"""Starting several processes on this machine as `torchrun` does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def command(arguments: Sequence[str], processes: int = 2) -> list[str]:
    """Return the command line of `torchrun` with its own port."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*start, *arguments]


@contextmanager
def launched(arguments: Sequence[str], processes: int = 2) -> Iterator[subprocess.Popen[str]]:
    """Start processes; whatever happens, they have ended after the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(arguments, processes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # torchrun ends its processes before itself


def run(arguments: Sequence[str], processes: int = 2) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error."""
    with launched(arguments, processes) as process:
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors
