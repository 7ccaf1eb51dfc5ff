"""What the first of several processes decides, and the work that it shares out while the others wait for that.

The first process runs a recipe as one process alone would. Where it has many pieces of work that do not depend on each other,
such as batches of images through a network, it sends the work to the others, which do their part of it wherever they wait. Pieces
are cut as one process cuts them, and their results come back in order, so that what is made of these is the same, bit for bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Generic, Protocol, TypeVar

from convnext_deploy.errors import DeployError
from convnext_deploy.system.distributed import collect, from_first_bytes, own_numbers, world
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.system.packing import Memory, pack, unpack

T = TypeVar("T")
Result = TypeVar("Result", covariant=True)
AT_ONCE = 4
"""Pieces that each process does between two exchanges, unless somebody knows better."""


class Work(Protocol[Result]):
    """Pieces of work that can be pickled, with everything that they need."""

    def __call__(self, numbers: range) -> Iterator[Result]:
        """Yield the results of the pieces with these numbers, one after the other, as they are asked for."""


@dataclass(frozen=True)
class _Failed:
    error: DeployError


@dataclass(frozen=True)
class _GoOn:
    """Do the next pieces of the work that came last."""


@dataclass(frozen=True)
class _Shared(Generic[T]):
    """Work with these numbers, of which each process does `at_once` between two exchanges."""

    work: Work[T]
    numbers: range
    at_once: int

    def rounds(self) -> Iterator[list[tuple[int, T | _Failed]]]:
        """Do this process's pieces, and yield after each exchange numbers and results of all, in order; in other processes none."""
        own = own_numbers(self.numbers)
        left = iter(own)
        results = self.work(own)
        for first in range(self.numbers.start, self.numbers.stop, world().size * self.at_once):
            if first > self.numbers.start and world().is_first:
                announce(_GoOn())
            done: list[tuple[int, T | _Failed]] = []
            for number in islice(left, self.at_once):
                try:
                    with full_float32():  # whatever the process that does it was about
                        done.append((number, next(results)))
                except DeployError as error:
                    done.append((number, _Failed(error)))
                    break
            yield sorted(chain(*collect(done)), key=itemgetter(0))


def share_out(work: Work[T], numbers: range, at_once: int = AT_ONCE) -> Iterator[T]:
    """Yield the results of pieces of work in the order of their numbers; all processes do them together.

    The first process calls this while the others wait for it in `receive` or `from_first`. Who needs no more results takes none.

    Args:
        work: the pieces.
        numbers: which, one after the other.
        at_once: how many each process does between two exchanges; those are done in vain whose results are not taken.

    Raises: DeployError: what the first of the pieces that failed raised, wherever that was.
    """
    if world().size == 1:
        yield from work(numbers)
        return
    for results in announce(_Shared(work, numbers, at_once)).rounds():
        for _, result in results:
            if isinstance(result, _Failed):
                raise result.error
            yield result


def announce(value: T) -> T:
    """Give a value of the first process to the others, which `receive` it, and return it."""
    _send(value, None)
    return value


def receive() -> Any:
    """Return what the first process announces, and do this process's part of what it shares out until then.

    Raises: DeployError: if what it announces is an error.
    """
    memory: Memory = {}
    rounds: Iterator[object] = iter(())
    while True:
        value, error = unpack(from_first_bytes(b""), memory)
        if error is not None:
            raise error
        if isinstance(value, _Shared):
            rounds = value.rounds()
        elif not isinstance(value, _GoOn):
            return value
        value = None
        next(rounds, None)


def from_first(make: Callable[[], T]) -> T:
    """Let the first process alone make a value, and return it in all; they all work on what it shares out meanwhile.

    Raises: DeployError: in all of them what `make` raised in the first.
    """
    if not world().is_first:
        made: T = receive()
        return made
    try:
        value = make()
    except DeployError as error:
        _send(None, error)
        raise
    return announce(value)


def _send(value: Any, error: DeployError | None) -> None:
    if world().size > 1:
        from_first_bytes(pack((value, error)))
