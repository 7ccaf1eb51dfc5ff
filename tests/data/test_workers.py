"""Processes that load images: they live across epochs, need no /dev/shm, and end in one line, however they end."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.data import pixels
from convnext_deploy.data import workers as module
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.data.workers import Loader
from convnext_deploy.errors import DataError, LoaderError
from convnext_deploy.system import posix
from tests.data.test_loaders import PLAIN, noise_images

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes load on Linux alone")
CHUNKS = [[0, 1, 2], [3, 4], [5, 6, 7]]


@dataclass(frozen=True)
class Numbered:
    """Images of 2 x 2 pixels with their number and epoch; at one of them something happens."""

    at: int = -1
    what: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return 2, 2, 1

    def name(self, index: int) -> str:
        return f"/data/{index}.jpg"

    def load(self, index: int, epoch: int) -> NDArray[np.uint8] | DataError:
        if index == self.at:
            if self.what.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, self.what))
            elif self.what == "stall":
                time.sleep(60)
            elif self.what == "unreadable":
                return DataError("x.jpg cannot be read")
            elif self.what == "memory":
                raise MemoryError
            elif self.what == "unsendable":
                raise UnicodeDecodeError("utf-8", b"x", 0, 1, "odd")
            elif self.what == "exit":
                os._exit(7)
        return np.full(self.shape, 10 * epoch + index, np.uint8)


def numbers(loader: Loader, epoch: int = 0) -> list[list[int]]:
    return [batch[:, 0, 0, 0].tolist() for batch, _ in loader.load(CHUNKS, epoch)]


def pids(loader: Loader) -> list[int]:
    return [] if loader._pool is None else [worker.pid for worker in loader._pool.workers]


def test_no_lock_that_a_process_needs_is_held_by_another_thread_when_it_is_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, found = os.fork, list[tuple[bool, bool]]()

    def watched() -> int:
        found.append((pixels.SWITCHING.locked(), posix._HOLDING.locked()))
        return fork()

    monkeypatch.setattr(os, "fork", watched)
    loader = Loader(Numbered(), 3, 2)
    assert numbers(loader) == CHUNKS
    loader.close()
    assert found == [(True, True)] * 2
    assert not pixels.SWITCHING.locked()
    assert not posix._HOLDING.locked()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_batches_are_in_order_with_any_number_of_processes(count: int) -> None:
    loader = Loader(Numbered(), 3, count)
    assert numbers(loader) == CHUNKS
    before = pids(loader)
    assert len(before) == min(count, 3)
    assert numbers(loader, 2) == [[20 + number for number in chunk] for chunk in CHUNKS]
    assert pids(loader) == before, "the processes do not live across epochs"
    loader.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    assert numbers(loader) == CHUNKS  # they start again


def test_processes_end_with_what_started_them_and_when_an_epoch_is_left_half_done() -> None:
    loader = Loader(Numbered(), 3, 2)
    numbers(loader)
    first = pids(loader)
    del loader
    loader = Loader(Numbered(), 3, 2)
    part = loader.load(CHUNKS)
    next(part)
    second = pids(loader)
    del part
    assert not any(Path(f"/proc/{pid}").exists() for pid in (*first, *second))
    assert numbers(loader, 1) == [[10 + number for number in chunk] for chunk in CHUNKS]


def test_one_process_of_the_first_epoch_becomes_as_many_as_are_wanted() -> None:
    loader = Loader(Numbered(), 3, 2)
    assert len(list(loader.load(CHUNKS[2:]))) == 1
    assert len(pids(loader)) == 1
    assert numbers(loader) == CHUNKS
    assert len(pids(loader)) == 2


@pytest.mark.parametrize("what", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_processes_leave_it_to_the_main_one_to_end_them(what: str) -> None:
    assert numbers(Loader(Numbered(4, what), 3, 2)) == CHUNKS


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("SIGKILL", "was killed, as the system does when memory runs out; use fewer --workers"),
        ("SIGBUS", "(SIGBUS), as when memory or a disk is full"),
        ("SIGSEGV", "crashed (SIGSEGV); if it does so again, remove that image"),
        ("exit", "ended with code 7"),
    ],
)
def test_process_that_dies_is_one_line_with_the_image_and_the_cause(what: str, said: str) -> None:
    loader = Loader(Numbered(6, what), 3, 2)
    with pytest.raises(LoaderError, match=re.escape(said)) as caught:
        numbers(loader)
    assert "/data/6.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert pids(loader) == []


def test_image_that_never_comes_is_not_waited_for_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALLED_S", 0.2)
    monkeypatch.setattr(module, "TICK_S", 0.05)
    loader = Loader(Numbered(3, "stall"), 3, 2)
    with pytest.raises(LoaderError, match=r"has not loaded /data/3\.jpg in 0 minutes"):
        numbers(loader)
    assert pids(loader) == []


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(("what", "kind"), [("memory", MemoryError), ("unsendable", UnicodeDecodeError)])
def test_other_errors_are_those_of_the_process_that_asked(count: int, what: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        numbers(Loader(Numbered(3, what), 3, count))


def test_unreadable_images_are_told_beside_the_others() -> None:
    found = [errors for _, errors in Loader(Numbered(4, "unreadable"), 3, 2).load(CHUNKS)]
    assert [list(errors) for errors in found] == [[], [1], []]
    assert str(found[1][1]) == "x.jpg cannot be read"


def test_processes_that_cannot_be_started_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(LoaderError, match=r"process 1 of 2 .* cannot be started \(Resource temporarily unavailable\)"):
        numbers(Loader(Numbered(), 3, 2))


def test_fewer_batches_and_processes_are_ahead_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = 3 * 4
    for room, expected in ((1000, (8, 2)), (16, (8, 2)), (15, (8, 1)), (8, (8, 1)), (3, (3, 1)), (0, (1, 1))):
        monkeypatch.setattr(module, "available_memory", lambda room=room: 4 * batch * room + 1)
        loader = Loader(Numbered(), 3, 8)
        assert (loader.workers, loader.ahead) == expected, room
    assert numbers(loader) == CHUNKS


def test_nothing_lies_in_shared_memory_that_a_container_limits() -> None:
    before = in_shared_memory("self")  # of other tests
    batches = TrainingBatches(noise_images(8, 100), PLAIN, BatchPlan(4, 5), workers=2)
    list(batches.epoch(0))
    started = pids(batches._loader)
    assert len(started) == 2
    for process in ("self", *started):
        assert in_shared_memory(process) <= before


def in_shared_memory(process: object) -> set[str]:
    """Return the files of `/dev/shm` that a process has mapped or open."""
    mapped = [line.split(maxsplit=5)[5:] for line in Path(f"/proc/{process}/maps").read_text().splitlines()]
    opened = [[str(link.readlink())] for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()]
    return {name for names in (*mapped, *opened) for name in names if name.startswith("/dev/shm")}


def test_evaluation_keeps_its_processes_only_where_it_is_asked_to() -> None:
    for keeps in (False, True):
        batches = EvaluationBatches(noise_images(8, 32), PLAIN, 4, 2, keeps_workers=keeps)
        list(batches)
        assert len(pids(batches._loader)) == (2 if keeps else 0)
        batches.close()


@pytest.mark.heavy
@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small /dev/shm, which only root may")
@pytest.mark.parametrize("size", ["4k", "64m"])
def test_large_batches_are_loaded_where_shared_memory_is_small(size: str) -> None:
    program = (
        "from tests.data.test_loaders import noise_images\n"
        "from convnext_deploy.artifacts.spec import default_preprocess\n"
        "from convnext_deploy.data.loaders import BatchPlan, TrainingBatches\n"
        "batches = TrainingBatches(noise_images(256, 100), default_preprocess(224), BatchPlan(64, 5), workers=2)\n"
        "print(sum(len(batch) for batch in batches.epoch(0)))\n"
        "from convnext_deploy.data.digits import read_digits\n"
        "read_digits()\n"
    )
    mount = (
        f'mount -t tmpfs -o size={size} tmpfs /dev/shm && head -c 3000 /dev/zero > /dev/shm/full && exec "$0" -c "$1"'
    )
    command = ["unshare", "-m", "sh", "-c", mount, sys.executable, program]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, cwd=Path(__file__).parents[2]
    )
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip(f"no mounts here: {done.stderr}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "256\n", "")
