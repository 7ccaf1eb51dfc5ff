"""What long work says about itself. The command line draws it; a library caller may stay silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work with a known length."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report `steps` more steps done; `note` is a short state such as `loss 0.41`."""


class Progress(Protocol):
    """Where stages, runners and validation report to."""

    def task(self, description: str, total: int) -> AbstractContextManager[Task]:
        """Open a task of `total` steps; it is closed when the context ends."""

    def say(self, message: str) -> None:
        """Print one line that stays."""


class _SilentTask:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class SilentProgress:
    """Reports nothing; the default of the Python functions."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """See `Progress.task`."""
        yield _SilentTask()

    def say(self, message: str) -> None:
        """See `Progress.say`."""
