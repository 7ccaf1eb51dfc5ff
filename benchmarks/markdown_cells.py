"""Tables of Markdown, and how figures stand in them."""

from __future__ import annotations

from collections.abc import Sequence


def as_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; a bar in a cell is escaped, since it would begin the next one, in code as well."""
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines]
    return "\n".join([("| " + " | ".join(head) + " |").replace("|  |", "| |"), "|" + "---|" * len(head), *rows])


def interval(median: float, low: float, high: float, *, sign: str = "") -> str:
    """Return such as `1.23 [1.20, 1.26]`."""
    return f"{median:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def power(value: float) -> str:
    """Return such as `3.4e-5`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
