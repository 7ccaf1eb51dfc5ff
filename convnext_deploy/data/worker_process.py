"""A process that loads images into memory which it shares with the one that started it.

The memory is anonymous: a small `/dev/shm`, such as the 64 MB of a container, does not limit it, and there are no semaphores, which
also lie there. The process ends with the one that started it, however that ends.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_deploy.data.pixels import SWITCHING, quiet
from convnext_deploy.errors import DataError, first_line
from convnext_deploy.system.interruption import blocked, ignore_from_now_on
from convnext_deploy.system.posix import fork

Chunk = Sequence[int] | NDArray[np.int64]
"""Numbers of the images of a batch."""
TICK_S = 1.0


class Items(Protocol):
    """Images by their numbers, all of one size."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""

    def load(self, index: int, epoch: int) -> NDArray[np.uint8] | DataError:
        """Return an image as it is in an epoch, or why it cannot be read."""

    def name(self, index: int) -> str:
        """Return what a user calls an image."""


def fill(pixels: NDArray[np.uint8], items: Items, chunk: Chunk, epoch: int) -> dict[int, DataError]:
    """Load images into the rows of `(N, H, W, C)`, and return the errors of those that could not be read."""
    errors = {}
    for row, index in enumerate(np.asarray(chunk).tolist()):
        item = items.load(index, epoch)
        if isinstance(item, DataError):
            errors[row] = item
        else:
            pixels[row] = item
    return errors


@dataclass(frozen=True)
class Shared:
    """What a process shares with this one.

    `numbers` of the images in each batch `(ahead, N)` int64, their `pixels` `(ahead, N, H, W, C)` uint8, and `place` `(2,)` int64:
    how many images the process has begun, and the number of the last.
    """

    numbers: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    place: NDArray[np.int64]


def share(ahead: int, batch_size: int, shape: tuple[int, int, int]) -> Shared:
    """Return memory for so many batches, which is taken when it is written to."""
    count = ahead * batch_size
    memory = mmap.mmap(-1, 8 * (count + 2) + count * int(np.prod(shape)))
    words = np.frombuffer(memory, np.int64, count + 2)
    pixels = np.frombuffer(memory, np.uint8, offset=words.nbytes)
    return Shared(words[2:].reshape(ahead, batch_size), pixels.reshape(ahead, batch_size, *shape), words[:2])


@dataclass(frozen=True)
class Worker:
    """A started process."""

    pid: int
    connection: Connection[Any, Any]
    shared: Shared


def start(items: Items, shared: Shared) -> Worker:
    """Fork a process; no signal reaches it before it ignores those that are meant for this one."""
    own, other = Pipe()
    parent = os.getpid()
    with blocked(), quiet():
        # the warning is of threads that hold locks: the process uses none but these two, and those of the C library, which sees
        # to its own
        with SWITCHING:
            pid = fork()
        if pid == 0:
            try:
                own.close()
                ignore_from_now_on()
                faulthandler.disable()  # the one that started it says how it ended
                _serve(items, other, shared, parent)
            finally:
                os._exit(0)
    other.close()
    return Worker(pid, own, shared)


def _serve(items: Items, connection: Connection[Any, Any], shared: Shared, parent: int) -> None:
    """Load what is asked for, until the other process is gone."""
    torch.set_num_threads(1)
    watched = _Watched(items, shared.place, parent)
    while True:
        while not connection.poll(TICK_S):
            if os.getppid() != parent:
                return
        slot, count, epoch = connection.recv()
        try:
            answer: Any = fill(shared.pixels[slot], watched, shared.numbers[slot, :count].tolist(), epoch)
        except Exception as error:
            answer = _portable(error)
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """Return an error with what led to it as a note, or one that says the same, if the former cannot be sent."""
    try:
        error = type(error)(*error.args)
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {first_line(error)}")
    error.add_note(f"In a process that loads images:\n{traceback.format_exc()}")
    return error


@dataclass(frozen=True)
class _Watched:
    """Items that note which of them is being loaded."""

    items: Items
    place: NDArray[np.int64]
    parent: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.items.shape

    def load(self, index: int, epoch: int) -> NDArray[np.uint8] | DataError:
        if os.getppid() != self.parent:
            os._exit(0)
        self.place[1] = index
        self.place[0] += 1
        return self.items.load(index, epoch)

    def name(self, index: int) -> str:
        return self.items.name(index)
