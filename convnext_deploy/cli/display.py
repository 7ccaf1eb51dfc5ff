"""What a person sees: progress on standard error, tables on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.table import Table
from rich.text import Text

from convnext_deploy.cli import EXIT_GATE_FAILED
from convnext_deploy.distributed import launched
from convnext_deploy.progress import Progress, SilentProgress, Task
from convnext_deploy.reporting.record import Report
from convnext_deploy.reporting.table import COLUMNS, cells, remarks, summary

_LINE_EVERY_S = 10.0
_NARROW = 150  # columns of a terminal, below which numbers are set closely and leave room for names


class _PlainTask:
    """A line when the work starts, at most one every ten seconds, and one when it ends."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done, self.note = description, total, 0, ""
        self.started = self.last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + steps, note
        if time.monotonic() - self.last >= _LINE_EVERY_S and self.done < self.total:
            self.last = time.monotonic()
            left = (self.last - self.started) / self.done * (self.total - self.done)
            click.echo(f"{self.description}: {self.done}/{self.total} {self.note} ({left:.0f} s left)", err=True)


class PlainProgress:
    """Plain lines, for files and pipes."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """See `Progress.task`."""
        task = _PlainTask(description, total)
        yield task
        seconds = time.monotonic() - task.started
        click.echo(f"{description}: done in {seconds:.1f} s{' ' + task.note if task.note else ''}", err=True)

    def say(self, message: str) -> None:
        """See `Progress.say`."""
        click.echo(message, err=True)


class _BarTask:
    def __init__(self, bars: RichBars, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.bars.update(self.task, advance=steps, note=note)


class BarProgress:
    """Bars, for terminals."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """See `Progress.task`."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichBars(*columns, TextColumn("{task.fields[note]}"), console=self.console) as bars:
            yield _BarTask(bars, bars.add_task(description, total=total, note=""))

    def say(self, message: str) -> None:
        """See `Progress.say`."""
        self.console.print(message, highlight=False, markup=False)


def create_progress() -> Progress:
    """Return bars on a terminal, plain lines otherwise; of several processes only the first one speaks."""
    if not launched().is_first:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def create_table(report: Report, width: int) -> Table:
    """Return the stage table for so many columns of a terminal. What does not fit is broken into lines, and nothing cut off."""
    narrow = width < _NARROW
    title = Text(f"{report.recipe}: {report.data}, {report.validation_images} validation images")
    table = Table(title=title, padding=(0, 0 if narrow else 1))
    for index, column in enumerate(COLUMNS):
        is_text = index in (0, 1, len(COLUMNS) - 1)
        words = " ".join((column, *(cells(row)[index] for row in report.rows))).split()
        widest = max(map(len, words)) if narrow and not is_text else None
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", max_width=widest)
    for row in report.rows:
        style = "bold red" if row.passed is False else None
        table.add_row(*(Text(text) for text in cells(row)), style=style)
    return table


def show_report(report: Report, as_json: bool) -> None:
    """Print the table, or the JSON, and end with exit code 3 if a gate failed; of several processes the first one alone."""
    if not launched().is_first:
        return
    if as_json:
        click.echo(report.to_json())
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(create_table(report, console.width))
        for text in remarks(report):
            console.print(f"- {text}", highlight=False, markup=False)
        console.print(summary(report), highlight=False, markup=False, style="bold red" if not report.passed else None)
    if not report.passed:
        raise click.exceptions.Exit(EXIT_GATE_FAILED)
