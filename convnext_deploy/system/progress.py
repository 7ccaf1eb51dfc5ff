"""Progress of long work, as a protocol: the command line draws it, a library caller may stay silent."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable


class Task(Protocol):
    """One piece of work with a known length."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report so many more of the task's units done; `note` is a short state such as `loss 0.41`."""


@runtime_checkable
class Progress(Protocol):
    """Where stages, runners and validation report to."""

    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> AbstractContextManager[Task]:
        """Open a task; it is closed when the context ends.

        Args:
            description: what is done, in a few words.
            total: how many units there are.
            unit: what is counted, in the plural, such as `images`; its rate is shown.
            done: how many of them were done before, by an earlier process; they count for no rate.
        """

    def say(self, message: str) -> None:
        """Print one line that stays."""


class _SilentTask:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class SilentProgress:
    """Reports nothing; the default of the Python functions."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        yield _SilentTask()

    def say(self, message: str) -> None:
        pass


def describe_time(seconds: float) -> str:
    """Return a duration in words, as exact as an estimate is."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def describe_rate(rate: float, unit: str) -> str:
    """Return a rate per second in three digits with its unit, such as `31.4 images/s`."""
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


def alive(progress: Progress | None, what: str) -> AbstractContextManager[None]:
    """Show that `what` goes on where no task tells of it, on displays that can: those with a method of this name."""
    show = getattr(progress, "alive", None)
    found: AbstractContextManager[None] = nullcontext() if show is None else show(what)
    return found
