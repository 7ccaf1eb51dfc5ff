"""A progress that keeps what is reported to it, and on request does something meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from convnext_deploy.system.progress import SilentProgress, Task


@dataclass
class RecordedTask:
    """A task: every advance with its note."""

    description: str
    total: int
    advances: list[tuple[int, str]] = field(default_factory=list)
    progress: RecordingProgress | None = None

    @property
    def done(self) -> int:
        """Steps so far."""
        return sum(steps for steps, _ in self.advances)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """See `Task.advance`."""
        self.advances.append((steps, note))
        if self.progress is not None and self.progress.meanwhile is not None:
            self.progress.meanwhile()
        if self.progress is not None and self.progress.raised is not None:
            raise self.progress.raised


@dataclass
class RecordingProgress(SilentProgress):
    """`meanwhile` is called, and `raised` raised, at every advance."""

    raised: BaseException | None = None
    meanwhile: Callable[[], object] | None = None
    tasks: list[RecordedTask] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """See `Progress.task`."""
        self.tasks.append(RecordedTask(description, total, progress=self))
        yield self.tasks[-1]

    def say(self, message: str) -> None:
        """See `Progress.say`."""
        self.said.append(message)
