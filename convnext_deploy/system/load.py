"""Whether a machine does other work while something is timed on it."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BUSY = 0.25  # share of the cores: when others take more, the times of this process are theirs too
_CROWDED = 3.0  # waiting for each core: more than what this package's own threads and decoding processes leave behind
_SHORTEST = 0.2  # seconds; the system counts in hundredths, so that less says nothing
_STAT = Path("/proc/stat")
_NAMED = re.compile(r"\bload ([0-9]+(?:\.[0-9])?) on(?= [0-9]+ cores)")


@dataclass
class Load:
    """What a machine did while it was watched.

    `average`: threads that ran or waited, over the last minute, as the system tells it. `cores`: of the machine. `others`: how many
    cores other processes took meanwhile; None where the system does not tell, or the time was too short.
    """

    average: float = 0.0
    cores: int = 1
    others: float | None = None

    def describe(self) -> str | None:
        """Return in words that the machine was loaded, such as `load 17 on 2 cores`; None where it was free enough."""
        crowded = self.average > _CROWDED * self.cores
        busy = self.others is not None and self.others > _BUSY * self.cores
        if not (crowded or busy):
            return None
        # a load that has only begun is not yet in the average
        load = max(self.average, self.others or 0.0)
        return f"load {load:.0f} on {self.cores} cores" if load >= 1 else f"load {load:.1f} on {self.cores} cores"


def unreliable(loaded: str) -> str:
    """Return what is to be said of times that were measured under a load."""
    return f"{loaded}: times are not to be relied on"


def without_load(text: str) -> str:
    """Return a text without the load that it names, as `Load.describe` puts it: what differs in that alone says the same."""
    return _NAMED.sub("load on", text)


def said_once(texts: Sequence[str]) -> str:
    """Return one text for several that are the same `without_load`: with the least and the largest load."""
    loads = sorted({float(found[1]) for text in texts if (found := _NAMED.search(text)) is not None})
    if len(loads) < 2:
        return texts[0]
    return _NAMED.sub(f"load {loads[0]:g} to {loads[-1]:g} on", texts[0])


@contextmanager
def watch_load() -> Iterator[Load]:
    """Yield a record that is filled in when the block ends. Processes that the block starts must have ended by then."""
    load = Load(cores=os.cpu_count() or 1)
    start, busy, own = time.perf_counter(), _busy_s(), _own_s()
    try:
        yield load
    finally:
        seconds, busy_now = time.perf_counter() - start, _busy_s()
        load.average = _average()
        if busy is not None and busy_now is not None and seconds >= _SHORTEST:
            load.others = max(0.0, busy_now - busy - (_own_s() - own)) / seconds


def _average() -> float:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # a system that has none
        return 0.0


def _busy_s() -> float | None:
    """Return the seconds that all cores have worked since the start of the machine; None where the system does not tell."""
    try:
        with _STAT.open(encoding="ascii", errors="replace") as stat:
            user, nice, system, _, _, irq, softirq, steal = (int(part) for part in stat.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Return the seconds of work of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])
