"""Tables on standard output, which rich draws; where that is not a terminal, for 160 columns."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convnext_deploy.cli.console import writing
from convnext_deploy.cli.fitting import fit, lay_out
from convnext_deploy.errors import printable

FILE_WIDTH = 160


class _Printing(Console):
    """Shows texts as they are, what is not printable as escapes: all of them pass through `render_str`, also those of tables."""

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **settings: Any) -> None:
        # a text is one line in a file; a terminal would break it amid a word
        whole = bool(soft_wrap) and not self.is_terminal
        with writing():
            super().print(*objects, soft_wrap=whole, **settings)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def create_console() -> Console:
    """Return standard output for what rich draws."""
    width = None if sys.stdout.isatty() else FILE_WIDTH
    return _Printing(width=width, highlight=False, markup=False, emoji=False)


def print_table(
    console: Console,
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[str] = (),
    *,
    styles: Sequence[str | None] = (),
    first: Sequence[str] = (),
    names: Sequence[str] = (),
) -> None:
    """Print rows without lines between them, in several tables where one is too wide for the terminal; see `fitting.fit`.

    Args:
        console: where to.
        titles: of the columns.
        rows: their cells.
        left: titles of the columns that hold words, and are set to the left.
        styles: of the rows; fewer than these: none for the others.
        first: titles of the columns that come first where there are several tables.
        names: titles of columns that stand in each of several tables where the first one does not tell the rows apart.
    """
    texts = [[printable(cell) for cell in row] for row in rows]
    for number, fitted in enumerate(fit(titles, texts, left, console.width, first, names)):
        if number:
            console.print()
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, fitted.gap - 1, 0, 0))
        for place, width in fitted.widths.items():
            title = Text("\n".join(lay_out(titles[place], width)))
            side: Literal["left", "right"] = "left" if titles[place] in left else "right"
            table.add_column(title, justify=side, width=width, no_wrap=True, vertical="top")
        for row, style in zip_longest(texts, styles[: len(texts)]):
            table.add_row(
                *(Text("\n".join(lay_out(row[place], width))) for place, width in fitted.widths.items()), style=style
            )
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
