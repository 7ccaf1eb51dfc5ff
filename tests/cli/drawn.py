"""Tables in what the command line printed, read back."""

from __future__ import annotations

import re
from collections.abc import Iterator


def tables_in(text: str) -> Iterator[list[str]]:
    """Yield the lines of each table: those after the line under its titles, up to an empty one."""
    lines: list[str] | None = None
    for line in [*text.splitlines(), ""]:
        if re.fullmatch(r"─+", line.strip()):
            lines = []
        elif lines is not None and line.strip():
            lines.append(line.rstrip())
        elif lines is not None:
            yield lines
            lines = None


def cells_of(line: str) -> list[str]:
    """Return the cells of a line in which none is empty."""
    return re.split(r"\s{2,}", line.strip())
