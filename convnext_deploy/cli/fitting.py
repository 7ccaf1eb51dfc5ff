"""Fit a table into the columns of a terminal: cells of two lines, then several tables; no word or interval is broken."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

_CHUNK = re.compile(r"(?:\[[^\]]*\]|\S)+")  # an interval stays together
# Spaces between columns, lines of a title, of a number, of a text: the first that fits is taken.
_TRIES = ((2, 1, 1, 1), (2, 2, 1, 1), (2, 2, 1, 2), (2, 2, 2, 1), (2, 2, 2, 2), (2, 3, 2, 3), (1, 3, 2, 3))
_IN_BANDS = (2, 2, 2, 2)
_WIDEST_NAME = 0.4  # of the width that the first column may take where there are several tables
_LEAST_ROOM = 0.3  # of the width that is left for what is told of the rows


@dataclass(frozen=True)
class Fitted:
    """One of the tables: its columns, by their place, with the width of each, and how many spaces are between them."""

    widths: dict[int, int]
    gap: int


def lay_out(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` columns; only what has no space and is wider is broken."""
    lines = []
    for paragraph in text.split("\n"):
        if cell_len(paragraph) <= width:
            lines.append(paragraph)
            continue
        line = ""
        for chunk in _CHUNK.findall(paragraph):
            longer = f"{line} {chunk}" if line else chunk
            if cell_len(longer) <= width:
                line = longer
                continue
            lines += [line] if line else []
            *parts, line = chop_cells(chunk, width)
            lines += parts
        lines.append(line)
    return lines


def width_in_lines(text: str, count: int) -> int:
    """Return the least width in which a text takes at most `count` lines and nothing is broken."""
    count = max(count, text.count("\n") + 1)
    least = max((cell_len(chunk) for chunk in _CHUNK.findall(text)), default=0)
    most = max(map(cell_len, text.split("\n")))
    return next(width for width in range(max(1, least), max(1, most) + 1) if len(lay_out(text, width)) <= count)


def fit(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: Collection[str],
    width: int,
    first: Sequence[str] = (),
    names: Sequence[str] = (),
) -> list[Fitted]:
    """Divide the columns of a table among as many tables as needed; what tells the rows apart begins all of them.

    Args:
        titles: of the columns.
        rows: their cells.
        texts: titles of those columns that hold words and no numbers.
        width: columns of the terminal.
        first: titles of the columns that come first where there are several tables, in this order.
        names: titles of columns that tell those rows apart which have the same first cell, as far as they do.
    """
    columns = {
        place: _Column(title, tuple(row[place] for row in rows), title in texts) for place, title in enumerate(titles)
    }
    if found := _fit_one(columns, width):
        return [found]
    widths = {place: min(column.width(_IN_BANDS), width) for place, column in columns.items()}
    own = {0: min(widths[0], max(8, int(_WIDEST_NAME * width)))}
    room = width - own[0]
    for place in _telling_apart(rows, [titles.index(name) for name in names]):
        needed = widths[place] + _IN_BANDS[0]
        if room - needed >= _LEAST_ROOM * width:
            own[place], room = widths[place], room - needed
    others = sorted(
        columns.keys() - own.keys(),
        key=lambda place: first.index(titles[place]) if titles[place] in first else len(first),
    )
    tables = []
    for band in _bands(others, widths, room):
        better = _fit_one({place: columns[place] for place in (*own, *band)}, width)
        tables.append(better or Fitted(own | {place: widths[place] for place in band}, _IN_BANDS[0]))
    return tables


def _telling_apart(rows: Sequence[Sequence[str]], names: Sequence[int]) -> list[int]:
    """Return those places of names, in their order, at which rows differ that were alike up to there."""
    found: list[int] = []
    for place in names:
        alike = {tuple(row[other] for other in (0, *found)) for row in rows}
        if len({tuple(row[other] for other in (0, *found, place)) for row in rows}) > len(alike):
            found.append(place)
    return found


@dataclass(frozen=True)
class _Column:
    title: str
    cells: tuple[str, ...]
    is_text: bool

    def width(self, lines: tuple[int, int, int, int]) -> int:
        """Return the least width for so many lines, as in `_TRIES`."""
        _, of_title, of_number, of_text = lines
        count = of_text if self.is_text else of_number
        return max([width_in_lines(self.title, of_title), *(width_in_lines(cell, count) for cell in self.cells)])


def _fit_one(columns: Mapping[int, _Column], width: int) -> Fitted | None:
    for lines in _TRIES:
        widths = {place: column.width(lines) for place, column in columns.items()}
        if sum(widths.values()) + lines[0] * (len(columns) - 1) <= width:
            return Fitted(widths, lines[0])
    return None


def _bands(order: Sequence[int], widths: Mapping[int, int], room: int) -> Iterator[list[int]]:
    band: list[int] = []
    left = room
    for place in order:
        needed = widths[place] + _IN_BANDS[0]
        if band and needed > left:
            yield band
            band, left = [], room
        band.append(place)
        left -= needed
    yield band
