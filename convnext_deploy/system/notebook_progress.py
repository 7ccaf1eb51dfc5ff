"""Progress in a notebook: a bar that is drawn anew in its place, in HTML that every front end shows without a widget."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from convnext_deploy.errors import printable
from convnext_deploy.system.progress import Task

_EVERY_S = 0.2  # a notebook gets each drawing as a message
_KERNELS = ("ZMQInteractiveShell", "google.colab._shell", "DatabricksShell")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which has imported IPython already."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None:
        return False
    return any(kind.__name__ in _KERNELS or kind.__module__ in _KERNELS for kind in type(shell).__mro__)


class _NotebookTask:
    def __init__(self, description: str, total: int, unit: str, done: int) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.before, self.note = done, done, ""
        self.started = self.drawn = time.monotonic()
        self._shown: Any = None
        self._draw()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + steps, note
        if time.monotonic() - self.drawn >= _EVERY_S:
            self._draw()

    def finish(self) -> None:
        self._draw(ended=True)

    def _draw(self, *, ended: bool = False) -> None:
        from IPython.display import display

        self.drawn = time.monotonic()
        seconds = self.drawn - self.started
        rate = (self.done - self.before) / seconds if seconds > 0 else 0.0
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        left = "" if ended or not rate else f"{timedelta(seconds=round(max(0, self.total - self.done) / rate))} left"
        took = f"done in {seconds:.1f} s" if ended else left
        counted = f"{self.done:,}/{self.total:,} {self.unit}"
        parts = [counted, f"{speed} {self.unit}/s" if rate else "", took, self.note]
        told = printable(", ".join(part for part in parts if part))
        bar = f'<progress value="{self.done}" max="{max(1, self.total)}"></progress>'
        name = html.escape(printable(self.description))
        bundle = {
            "text/plain": f"{printable(self.description)}: {told}",
            "text/html": f"<div>{name} {bar} <small>{html.escape(told)}</small></div>",
        }
        if self._shown is None:
            self._shown = display(bundle, raw=True, display_id=True)
        else:
            self._shown.update(bundle, raw=True)


class NotebookProgress:
    """Bars, for notebooks."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """Open a task, which is closed when the context ends."""
        task = _NotebookTask(description, total, unit, done)
        yield task
        task.finish()  # of interrupted work nothing says that it is done

    def say(self, message: str) -> None:
        """Print one line that stays."""
        print(printable(message), flush=True)
