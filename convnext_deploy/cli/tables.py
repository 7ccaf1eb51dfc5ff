"""Tables on standard output, which rich draws; where that is not a terminal, for 160 columns."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convnext_deploy.cli.console import writing
from convnext_deploy.errors import printable

FILE_WIDTH = 160


class _Printing(Console):
    """Shows texts as they are, what is not printable as escapes: all of them pass through `render_str`, also those of tables."""

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        with writing():
            super().print(*objects, **settings)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def create_console() -> Console:
    """Return standard output for what rich draws."""
    width = None if sys.stdout.isatty() else FILE_WIDTH
    return _Printing(width=width, highlight=False, markup=False, emoji=False)


def print_table(
    console: Console, titles: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = ()
) -> None:
    """Print rows without lines between them; columns are set to the right, but for those with a title in `left`."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        table.add_column(Text(title), justify="left" if title in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Print a text beside each name."""
    grid = Table.grid(padding=(0, 2))
    for name, text in facts.items():
        grid.add_row(Text(name, style="bold"), text)
    console.print(grid)


def print_items(console: Console, texts: Iterable[str]) -> None:
    """Print a list, a mark before each text."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for text in texts:
        grid.add_row("  -", text)
    console.print(grid)
