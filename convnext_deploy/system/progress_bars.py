"""Progress: bars on a terminal and in a notebook, plain lines in files and pipes."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from convnext_deploy.errors import printable
from convnext_deploy.system.distributed import launched
from convnext_deploy.system.notebook_progress import NotebookProgress, in_notebook
from convnext_deploy.system.progress import Progress, SilentProgress, Task, describe_rate
from convnext_deploy.system.standard_error import tell

_LINE_EVERY_S = 10.0
FIRST_S = 2.0  # after which a plain line says what goes on, where nothing was said yet
_SILENT_S = 20.0  # after which a plain line says that work goes on; then after twice as long, up to a minute
_BAR_WIDTH, _NARROW_BAR = (
    24,
    12,
)  # leaves room for the rate, the time and a note in 100 columns, or for the time and a note
_NARROW = 100  # columns of a terminal


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


class PlainProgress:
    """Plain lines, for files and pipes."""

    def __init__(self) -> None:
        self._open: list[_PlainTask] = []
        self._began = self._spoke = time.monotonic()

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """Open a task, which is closed when the context ends."""
        task = _PlainTask(description, total, unit, done)
        self._open.append(task)
        try:
            yield task
        finally:
            self._open.remove(task)
        task.finish()
        self._spoke = time.monotonic()

    def say(self, message: str) -> None:
        """Print one line that stays."""
        tell(message)
        self._spoke = time.monotonic()

    @contextmanager
    def alive(self, what: str) -> Iterator[None]:
        """Let a line now and then say that work goes on, while nothing else does."""
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(what, ended), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=1)

    def _watch(self, what: str, ended: threading.Event) -> None:
        started = said = time.monotonic()
        pause = FIRST_S if self._spoke == self._began else _SILENT_S
        while not ended.wait(1.0):
            now = time.monotonic()
            tasks = list(self._open)
            last = max([self._spoke, *(task.last for task in tasks if task.last > task.started)])
            if last > said:  # something else was printed meanwhile
                said, pause = last, _SILENT_S
            if now - said >= pause:
                where, since = (tasks[-1].description, tasks[-1].started) if tasks else (what, started)
                tell(f"{where}: {timedelta(seconds=round(now - since))} so far")
                said, pause = now, _SILENT_S if pause < _SILENT_S else min(2 * pause, 60.0)


def _cut(text: str, room: int) -> str:
    """Return a text that fits into one line with the bar; the width of its characters is taken for one."""
    shown = printable(text)
    return shown if len(shown) <= room else f"{shown[: max(0, room - 1)]}…"


class _BarTask:
    def __init__(self, bars: RichBars, task: TaskID, room: int) -> None:
        self.bars, self.task, self.room = bars, task, room

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.bars.update(self.task, advance=steps, note=_cut(note, self.room) if self.room > 1 else "")


class _RateColumn(ProgressColumn):
    """Units per second of late, once that is known."""

    def render(self, task: RichTask) -> Text:
        """Return the rate of a task as text."""
        if task.total == 1:  # nobody counts graphs per second
            return Text("")
        speed = task.finished_speed or task.speed
        if speed is None and task.finished and task.elapsed:  # all of it was one step
            speed = (task.completed - task.fields["before"]) / task.elapsed
        return Text("" if speed is None else describe_rate(speed, task.fields["unit"]), style="progress.data.speed")


class _TimeColumn(TimeRemainingColumn):
    """The time that is left, or that has passed, which moves also where nothing tells how much is left."""

    def render(self, task: RichTask) -> Text:
        """Return the time of a task as text."""
        if task.finished or task.time_remaining is not None or task.elapsed is None:
            return super().render(task)
        return Text(str(timedelta(seconds=int(task.elapsed))), style="progress.elapsed")


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

    def __init__(self, asks: bool = False) -> None:
        """`asks`: whether somebody sits there who can be asked."""
        self._asks = asks
        self.console: Console = _ErrorConsole(stderr=True, highlight=False, markup=False, emoji=False)
        self._alive: RichBars | None = None
        self._depth = 0

    @contextmanager
    def alive(self, what: str) -> Iterator[None]:
        """Show a line that moves while no task is open."""
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._alive = RichBars(*columns, console=self.console, transient=True, redirect_stdout=sys.stdout.isatty())
        self._alive.add_task(what, total=None)
        self._alive.start()
        try:
            yield
        finally:
            self._alive.stop()
            self._alive = None

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """Open a task, which is closed when the context ends."""
        narrow = self.console.width < _NARROW
        whole = Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=whole),
            BarColumn(bar_width=_NARROW_BAR if narrow else _BAR_WIDTH),
            MofNCompleteColumn(table_column=whole),
            TextColumn("{task.fields[unit]}", markup=False, table_column=whole),
            *(() if narrow else (_RateColumn(table_column=whole),)),
            _TimeColumn(elapsed_when_finished=True, table_column=whole),
            TextColumn("{task.fields[note]}", markup=False, table_column=whole),
        )
        if self._alive is not None and self._depth == 0:
            self._alive.stop()
        self._depth += 1
        try:
            bar, rate = (_NARROW_BAR, 0) if narrow else (_BAR_WIDTH, len(unit) + 8)
            # between the columns are spaces, and the time takes seven
            room = self.console.width - bar - rate - 2 * len(str(total)) - len(unit) - 7 - 8
            with self._bars(columns, _cut(description, room), total, unit, done) as task:
                yield _BarTask(*task, room - len(description))
        finally:
            self._depth -= 1
            if self._alive is not None and self._depth == 0:
                self._alive.start()

    @contextmanager
    def _bars(
        self, columns: tuple[ProgressColumn, ...], description: str, total: int, unit: str, done: int
    ) -> Iterator[tuple[RichBars, TaskID]]:
        # Results that go to a file meanwhile must not be drawn above the bar in their place.
        with RichBars(*columns, console=self.console, redirect_stdout=sys.stdout.isatty()) as bars:
            yield bars, bars.add_task(description, total=total, completed=done, note="", unit=unit, before=done)

    def say(self, message: str) -> None:
        """Print one line that stays."""
        self.console.print(message)

    def ask(self, question: str) -> bool:
        """Return whether to go on: yes where nobody can be asked, and where the answer is empty."""
        if not self._asks or not sys.stdin.isatty():
            return True
        if self._alive is not None:
            self._alive.stop()
        try:
            answer = self.console.input(f"{question} [Y/n] ")
        except EOFError:
            return False
        finally:
            if self._alive is not None:
                self._alive.start()
        return answer.strip().lower() in ("", "y", "yes")


def create_display() -> Progress:
    """Return what shows progress to who calls a function: bars on a terminal and in a notebook, elsewhere nothing."""
    if not launched().is_first:
        return SilentProgress()
    if in_notebook():
        return NotebookProgress()
    return BarProgress() if sys.stderr is not None and sys.stderr.isatty() else SilentProgress()


def create_progress(quiet: bool = False, asks: bool = False) -> Progress:
    """Return bars on a terminal, plain lines otherwise, nothing if `quiet`; of several processes only the first one speaks.

    `asks`: before long work, where it can.
    """
    if quiet or not launched().is_first:
        return SilentProgress()
    return BarProgress(asks) if sys.stderr.isatty() else PlainProgress()
