"""Processes that load batches of images ahead of time; they live as long as what started them."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.worker_process import TICK_S, Chunk, Items, Worker, fill, share, start
from convnext_deploy.errors import DataError, LoaderError
from convnext_deploy.system.memory import available_memory
from convnext_deploy.system.posix import signals_named

Loaded = tuple[NDArray[np.uint8], dict[int, DataError]]
"""Pixels `(N, S, S, C)` uint8, and for each row that could not be read the error; such a row holds anything."""
STALLED_S = 600.0  # the longest time for one image: a disk on the network may be gone for minutes
_AHEAD = 2  # batches that each process loads before they are asked for
_MOST_MEMORY = 0.25  # of what is available, for batches under way
_CAUSES = signals_named(
    SIGKILL="was killed, as the system does when memory runs out; use fewer --workers, a smaller batch_size or more memory",
    SIGBUS="found no memory behind an address (SIGBUS), as when memory or a disk is full; use fewer --workers or a smaller "
    "batch_size, and make room",
)
_CRASHED = "crashed ({name}); if it does so again, remove that image, or update Pillow"


class Loader:
    """Loads batches of images, ahead of time where there are processes for it; they start when they are first needed.

    Args:
        items: the images.
        batch_size: most images of a batch.
        workers: processes; 0, or on other systems than Linux: this one loads.
    """

    def __init__(self, items: Items, batch_size: int, workers: int) -> None:
        self.items, self.batch_size = items, batch_size
        self.workers, self.ahead = _affordable(workers, batch_size * int(np.prod(items.shape)))
        self._pool: _Pool | None = None

    def load(self, chunks: Sequence[Chunk], epoch: int = 0) -> Iterator[Loaded]:
        """Yield the images of each chunk, at most `batch_size`, in order.

        Raises: LoaderError: if a process ended, or has not loaded a single image for ten minutes.
        """
        if not self.workers:
            for chunk in chunks:
                pixels = np.empty((len(chunk), *self.items.shape), np.uint8)
                yield pixels, fill(pixels, self.items, chunk, epoch)
            return
        wanted = max(1, min(self.workers, len(chunks)))
        if self._pool is not None and len(self._pool.workers) < wanted:  # the first epoch had few batches left
            self.close()
        if self._pool is None:
            self._pool = _Pool(self.items, self.batch_size, wanted, self.ahead)
        is_done = False
        try:
            yield from self._pool.load(chunks, epoch)
            is_done = True
        finally:
            if not is_done:  # batches are still under way
                self.close()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _affordable(workers: int, batch_bytes: int) -> tuple[int, int]:
    """Return how many processes load how many batches ahead, so that there is memory for all of them."""
    if workers <= 0 or not sys.platform.startswith("linux") or not hasattr(os, "fork"):
        return 0, 0
    room = int(_MOST_MEMORY * (available_memory() or 1 << 62))
    ahead = _AHEAD if workers * _AHEAD * batch_bytes <= room else 1
    return max(1, min(workers, room // (ahead * batch_bytes))), ahead


class _Pool:
    """Started processes, each of which loads every `len(workers)`-th batch."""

    def __init__(self, items: Items, batch_size: int, count: int, ahead: int) -> None:
        self.items, self.ahead, self.workers = items, ahead, list[Worker]()
        self.close = weakref.finalize(self, _end, self.workers, os.getpid())
        try:
            for _ in range(count):
                self.workers.append(start(items, share(ahead, batch_size, items.shape)))
        except OSError as error:
            self.close()
            raise LoaderError(
                f"process {len(self.workers) + 1} of {count} that load images cannot be started ({error.strerror}); "
                "use fewer --workers, or raise the limit of processes or of memory."
            ) from None
        except BaseException:
            self.close()
            raise

    def load(self, chunks: Sequence[Chunk], epoch: int) -> Iterator[Loaded]:
        """See `Loader.load`."""
        most = self.ahead * len(self.workers)
        for number in range(min(most, len(chunks))):
            self._ask(number, chunks[number], epoch)
        for number, chunk in enumerate(chunks):
            worker, slot = self._place(number)
            found = self._wait(worker)
            if isinstance(found, Exception):
                raise found
            pixels = worker.shared.pixels[slot, : len(chunk)].copy()
            if number + most < len(chunks):
                self._ask(number + most, chunks[number + most], epoch)
            yield pixels, found

    def _place(self, number: int) -> tuple[Worker, int]:
        turn, place = divmod(number, len(self.workers))
        return self.workers[place], turn % self.ahead

    def _ask(self, number: int, chunk: Chunk, epoch: int) -> None:
        worker, slot = self._place(number)
        worker.shared.numbers[slot, : len(chunk)] = chunk
        try:
            worker.connection.send((slot, len(chunk), epoch))
        except OSError:
            raise self._lost(worker) from None

    def _wait(self, worker: Worker) -> Any:
        """Return the next answer of a process."""
        begun, since = -1, time.monotonic()
        try:
            while not worker.connection.poll(TICK_S):
                now = time.monotonic()
                if worker.shared.place[0] != begun:
                    begun, since = int(worker.shared.place[0]), now
                elif now - since > STALLED_S:
                    raise LoaderError(
                        f"a process that loads images (pid {worker.pid}) has not loaded {self._last(worker)} in "
                        f"{STALLED_S / 60:.0f} minutes; check the disk, or whether the process was stopped."
                    )
            return worker.connection.recv()
        except (EOFError, OSError):
            raise self._lost(worker) from None

    def _lost(self, worker: Worker) -> LoaderError:
        """Return what became of a process that does not answer any more."""
        status = _wait_for(worker.pid)
        self.workers.remove(worker)
        if status is None or not os.WIFSIGNALED(status):
            code = "" if status is None else f" with code {os.waitstatus_to_exitcode(status)}"
            why = f"ended{code}; the same command goes on from what is saved"
        else:
            signum = os.WTERMSIG(status)
            name = signal.Signals(signum).name if signum in set(signal.Signals) else f"signal {signum}"
            why = _CAUSES.get(signum, _CRASHED.format(name=name))
        return LoaderError(f"a process that loads images, at {self._last(worker)}, {why}.")

    def _last(self, worker: Worker) -> str:
        begun, index = worker.shared.place.tolist()
        return self.items.name(index) if begun else "its first image"


def _end(workers: list[Worker], owner: int) -> None:
    """End processes, unless this is a fork of the one that started them."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.connection.close()
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        _wait_for(worker.pid)
    workers.clear()


def _wait_for(pid: int) -> int | None:
    """Return how a process that is about to end ended; None if it takes longer than a second, or nothing is known of it."""
    until = time.monotonic() + TICK_S
    while time.monotonic() < until:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if found:
            return status
        time.sleep(0.002)
    return None
