"""What the first process shares out comes back in order, whatever the number of processes, and an error where it would be."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest

from convnext_deploy.errors import DataError
from convnext_deploy.system.distributed import gather_in_order, own_numbers, world
from convnext_deploy.system.packing import Kept
from convnext_deploy.system.shared_work import announce, from_first, receive, share_out
from tests.distributed.threads import as_processes

SIZES = pytest.mark.parametrize("size", [1, 2, 3])


@dataclass(frozen=True)
class Squares:
    """Who did it, and the square; from `bad` on there is none."""

    bad: int = 1000

    def __call__(self, numbers: range) -> Iterator[tuple[int, int]]:
        for number in numbers:
            if number >= self.bad:
                raise DataError(f"no square of {number}")
            yield world().rank, number * number


@SIZES
@pytest.mark.parametrize("numbers", [range(0), range(1), range(2), range(11), range(5, 12)])
@pytest.mark.parametrize("at_once", [1, 4])
def test_results_come_in_order_and_each_process_does_its_own(
    size: int, numbers: range, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = as_processes(size, monkeypatch).run(
        lambda: from_first(lambda: list(share_out(Squares(), numbers, at_once)))
    )
    assert found == [[(number % size, number * number) for number in numbers]] * size


@SIZES
def test_an_error_comes_where_it_would_and_the_others_wait_on(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def lead() -> tuple[list[int], list[int]]:
        taken = list[int]()
        with pytest.raises(DataError, match="no square of 4"):
            taken.extend(square for _, square in share_out(Squares(bad=4), range(20)))
        return taken, [square for _, square in share_out(Squares(), range(3))]

    found = as_processes(size, monkeypatch).run(lambda: from_first(lead))
    assert found == [([0, 1, 4, 9], [0, 1, 4])] * size


@SIZES
def test_who_needs_no_more_results_takes_none(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the first process does next finds the others waiting: other work, an error, or the end."""

    def lead() -> list[int]:
        first = [square for _, square in islice(share_out(Squares(), range(40), 1), 5)]
        begun = share_out(Squares(), range(40), 1)
        return [*first, next(begun)[1], *(square for _, square in share_out(Squares(), range(2)))]

    threads = as_processes(size, monkeypatch)
    assert threads.run(lambda: from_first(lead)) == [[0, 1, 4, 9, 16, 0, 0, 1]] * size

    def fail() -> None:
        begun = share_out(Squares(), range(40), 1)
        next(begun)
        raise DataError("enough")

    def follow() -> str:
        with pytest.raises(DataError) as caught:
            from_first(fail)
        return str(caught.value)

    assert threads.run(follow) == ["enough"] * size


@dataclass
class Shelf(Kept):
    """Something that learns."""

    name: str
    learned: list[int] = field(default_factory=list, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Shelf, (self.name,)


@dataclass(frozen=True)
class Learning:
    shelf: Shelf

    def __call__(self, numbers: range) -> Iterator[list[int]]:
        for number in numbers:
            self.shelf.learned.append(number)
            yield list(self.shelf.learned)


def test_what_is_kept_is_the_same_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def lead() -> list[list[int]]:
        shelf, other = Shelf("a"), Shelf("b")
        found: list[list[int]] = []
        for work in (Learning(shelf), Learning(dataclasses.replace(other)), Learning(shelf)):
            found = list(share_out(work, range(4)))
        return found

    # each knows of its own pieces of both times, and of nothing of the other shelf
    assert as_processes(2, monkeypatch).run(lambda: from_first(lead))[0] == [
        [0, 2, 0],
        [1, 3, 1],
        [0, 2, 0, 2],
        [1, 3, 1, 3],
    ]


@SIZES
def test_all_have_what_each_found_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> list[int]:
        return gather_in_order([10 * number for number in own_numbers(range(7))])

    assert as_processes(size, monkeypatch).run(work) == [[0, 10, 20, 30, 40, 50, 60]] * size


def test_receive_returns_what_is_announced_between_two_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> list[Any]:
        if not world().is_first:
            return [receive(), receive()]
        found = [announce("begin")]
        list(share_out(Squares(), range(9)))
        return [*found, announce("end")]

    assert as_processes(3, monkeypatch).run(work) == [["begin", "end"]] * 3


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_process_that_ends_ends_the_others_in_one_line(how: str) -> None:
    """Without torchrun, which would end the others itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.dying_worker", how],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    codes = [process.returncode for process in processes]
    if how == "failed":  # the first says what was wrong in the second, which hears of it as of any error
        assert (codes, said) == ([1, 1], ["0: image 3 cannot be read\n", "1: image 3 cannot be read\n"])
        return
    assert codes == [1, -signal.SIGKILL]
    assert said[0].startswith("0: process 0 of 2 lost the others (")
    assert (said[0].count("\n"), said[1]) == (1, "")
