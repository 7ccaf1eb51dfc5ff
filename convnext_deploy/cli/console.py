"""The one way out: everything that the command line prints passes here, and no name in it does anything to a terminal.

Names of classes, files, layers and recipes come from anywhere. Where a text leaves, what is not printable becomes an escape; see
`errors.printable`. Callers hand over texts as they are.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator

from convnext_deploy.cli.starting import started
from convnext_deploy.errors import OutputError, printable
from convnext_deploy.system.standard_error import in_lines

_SUBSTITUTES = "convnext_deploy.substitutes"
# for a standard output that has no such character; as wide as these, so that tables stay straight
_PLAIN = str.maketrans("–—−×·…°«»→≥≤±µ", '---x..o"">><+u')


class UnreadError(Exception):
    """Nobody reads standard output any more. No `OSError`, of which click makes an exit with 1."""


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def prepare_streams() -> None:
    """Let standard output and standard error take every text, whatever their encoding, and closed ones swallow it.

    A closed one would otherwise be the number of the next file that is opened, and get what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    codecs.register_error(_SUBSTITUTES, _substitute)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _Nowhere())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_SUBSTITUTES)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(_PLAIN)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


def say(text: object) -> None:
    """Print one line on standard output. Raises: as `write`."""
    write(printable(text))


def write(text: str, end: str = "\n") -> None:
    """Print lines of our own on standard output, such as JSON or a recipe.

    Raises:
        UnreadError: if nobody reads it any more.
        OutputError: if it cannot be written for another reason, such as a full disk.
    """
    started()
    with writing():
        sys.stdout.write(in_lines(text) + end)
        sys.stdout.flush()


def abandon_output() -> None:
    """Forget what standard output does not take; it would be tried again, and told of, when the process ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        stream, sys.stdout = sys.stdout, None
        with contextlib.suppress(OSError, ValueError):
            stream.close()


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Within the block standard output is written. Raises: as `write`."""
    try:
        yield
    except BrokenPipeError:
        raise UnreadError from None
    except OSError as error:
        abandon_output()
        raise OutputError(f"standard output cannot be written ({error.strerror}).") from None
