"""Threads that take themselves for the processes of one run, so that what these share out can be tested at little cost."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from convnext_deploy.system import distributed, shared_work
from convnext_deploy.system.distributed import World
from convnext_deploy.system.full_float32 import full_float32

T = TypeVar("T")
_PATIENCE_S = 120.0


class Threads:
    """The collectives of so many threads, each of which is a process of its own rank; everything goes through bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._own = threading.local()
        self._barrier = threading.Barrier(size, timeout=_PATIENCE_S)
        self._slots = [b""] * size
        self.sent: list[int] = []

    def world(self) -> World:
        return World(getattr(self._own, "rank", 0), self.size, 0)

    def broadcast(self, packed: bytes) -> bytes:
        if self.world().is_first:
            self.sent.append(len(packed))
        return self._meet(packed)[0]

    def exchange(self, packed: bytes, *, everywhere: bool) -> list[bytes]:
        found = self._meet(packed)
        return found if everywhere or self.world().is_first else []

    def _meet(self, packed: bytes) -> list[bytes]:
        self._slots[self.world().rank] = packed
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def run(self, work: Callable[[], T]) -> list[T]:
        """Do the same in every thread, as the program of all processes does, and return by rank what came of it."""

        def be(rank: int) -> T:
            self._own.rank = rank
            try:
                return work()
            except BaseException:
                self._barrier.abort()  # as a connection that is gone
                raise

        # its switches are those of all threads
        with full_float32(), ThreadPoolExecutor(self.size) as pool:
            tasks = [pool.submit(be, rank) for rank in range(self.size)]
            failed = [task.exception() for task in tasks]
            told = [
                error for error in failed if error is not None and not isinstance(error, threading.BrokenBarrierError)
            ]
            if told:
                raise told[0]
            return [task.result() for task in tasks]


def as_processes(size: int, monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Let threads be processes until the end of a test."""
    threads = Threads(size)
    real = distributed.world
    for module in [*sys.modules.values()]:  # whoever has the function by its name
        if vars(module).get("world") is real:
            monkeypatch.setattr(module, "world", threads.world)
    monkeypatch.setattr(distributed, "_exchange", threads.exchange)
    monkeypatch.setattr(shared_work, "from_first_bytes", threads.broadcast)
    return threads
