"""What is said of work while it is done: lines on standard error, and no name in them does anything to a terminal."""

import contextlib
import sys

from convnext_deploy.errors import printable


def tell(text: object) -> None:
    """Print one line on standard error; work of hours does not end because nobody reads what is said of it."""
    tell_lines(f"{printable(text)}\n")


def tell_lines(text: str) -> None:
    """Print lines of our own on standard error, as `tell`."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(in_lines(text))
        sys.stderr.flush()


def in_lines(text: str) -> str:
    """Return lines as they may be printed."""
    return "\n".join(map(printable, text.split("\n")))
