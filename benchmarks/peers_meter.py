"""What a block of code takes: seconds and memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from pathlib import Path
from types import TracebackType


class Meter:
    """Seconds of a block, and its peak resident memory in bytes above what the process held at its start."""

    seconds = 0.0
    peak_bytes: int | None = None

    def __enter__(self) -> Meter:
        gc.collect()
        if platform.system() == "Linux":
            # What was freed but not returned would hide as much of what the block takes.
            if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
                libc.malloc_trim(0)
            # The high-water mark starts anew, so that it is not that of the imports or, with `ru_maxrss`, of the parent process.
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _memory("VmRSS")
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        if platform.system() == "Linux":
            self.peak_bytes = _memory("VmHWM") - self._before


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
