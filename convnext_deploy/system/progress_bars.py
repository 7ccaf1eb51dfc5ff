"""Progress: bars on a terminal and in a notebook, plain lines in files and pipes."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.progress import Task as RichTask
from rich.text import Text

from convnext_deploy.errors import printable
from convnext_deploy.system.distributed import launched
from convnext_deploy.system.notebook_progress import NotebookProgress, in_notebook
from convnext_deploy.system.progress import Progress, SilentProgress, Task
from convnext_deploy.system.standard_error import tell

_LINE_EVERY_S = 10.0
_BAR_WIDTH = 24  # leaves room for the rate, the time and a note in 100 columns


class _PlainTask:
    """A line when the work starts, at most one every ten seconds, and one when it ends."""

    def __init__(self, description: str, total: int, unit: str, done: int) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.before, self.note = done, done, ""
        self.started = self.last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + steps, note
        if time.monotonic() - self.last >= _LINE_EVERY_S and self.before < self.done < self.total:
            self.last = time.monotonic()
            rate = (self.done - self.before) / (self.last - self.started)
            left = timedelta(seconds=round((self.total - self.done) / rate))
            where = f"{self.description}: {self.done:,}/{self.total:,} {self.unit}"
            parts = (where, describe_rate(rate, self.unit), f"{left} left", self.note)
            tell(", ".join(part for part in parts if part))

    def finish(self) -> None:
        seconds = time.monotonic() - self.started
        done = self.done - self.before
        rate = describe_rate(done / max(seconds, 1e-9), self.unit) if done > 1 and seconds >= 0.1 else ""
        parts = (f"{self.description}: done in {seconds:.1f} s", rate, self.note)
        tell(", ".join(part for part in parts if part))


def describe_rate(rate: float, unit: str) -> str:
    """Return a rate per second in three digits with its unit, such as `31.4 images/s`."""
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.3g} {unit}/s"


class PlainProgress:
    """Plain lines, for files and pipes."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """Open a task, which is closed when the context ends."""
        task = _PlainTask(description, total, unit, done)
        yield task
        task.finish()

    def say(self, message: str) -> None:
        """Print one line that stays."""
        tell(message)


class _BarTask:
    def __init__(self, bars: RichBars, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.bars.update(self.task, advance=steps, note=printable(note))


class _RateColumn(ProgressColumn):
    """Units per second of late, once that is known."""

    def render(self, task: RichTask) -> Text:
        """Return the rate of a task as text."""
        speed = task.finished_speed or task.speed
        if speed is None and task.finished and task.elapsed:  # all of it was one step
            speed = (task.completed - task.fields["before"]) / task.elapsed
        return Text("" if speed is None else describe_rate(speed, task.fields["unit"]), style="progress.data.speed")


class _ErrorConsole(Console):
    """Standard error for what rich draws: texts as they are, what is not printable as escapes."""

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        with contextlib.suppress(OSError):
            super().print(*objects, **settings)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class BarProgress:
    """Bars, for terminals."""

    def __init__(self) -> None:
        self.console: Console = _ErrorConsole(stderr=True, highlight=False, markup=False, emoji=False)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """Open a task, which is closed when the context ends."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            _RateColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # Results that go to a file meanwhile must not be drawn above the bar in their place.
        with RichBars(*columns, console=self.console, redirect_stdout=sys.stdout.isatty()) as bars:
            yield _BarTask(
                bars,
                bars.add_task(printable(description), total=total, completed=done, note="", unit=unit, before=done),
            )

    def say(self, message: str) -> None:
        """Print one line that stays."""
        self.console.print(message)


def create_display() -> Progress:
    """Return what shows progress to who calls a function: bars on a terminal and in a notebook, elsewhere nothing."""
    if not launched().is_first:
        return SilentProgress()
    if in_notebook():
        return NotebookProgress()
    return BarProgress() if sys.stderr is not None and sys.stderr.isatty() else SilentProgress()


def create_progress(quiet: bool = False) -> Progress:
    """Return bars on a terminal, plain lines otherwise, nothing if `quiet`; of several processes only the first one speaks."""
    if quiet or not launched().is_first:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() else PlainProgress()
