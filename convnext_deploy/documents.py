"""Files that are read back: opened only where they are regular files of a likely size, and parsed strictly.

Every document that this package or a user wrote is read through here, so that a pipe, a device, a file without end or a text made
to break a parser ends in a few words: an `OSError` says what is wrong with the file, a `ValueError` what with its content. Readers
put the path before `reason` of either, and what to do behind it. Records are made of the result by `config.records`.
"""

import errno
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

from convnext_deploy.errors import first_line

LARGEST = 100_000_000  # bytes of a document; a report with the pictures of its flips has a few million
_LEAST = 1 << 16
_DEEPEST = 64  # tables and lists within each other; ours have ten
# Windows has no pipes among its files, and would change the ends of lines
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class RefusedFileError(OSError):
    """A file that is not opened, or not read to its end; `strerror` says why."""


def open_file(path: Path, largest: int | None = None) -> BinaryIO:
    """Open a file for reading: never a pipe, which would wait for its writer, nor a device, which has no end.

    Args:
        path: of a file, or of a link to one.
        largest: bytes that it may have; None: any number.

    Raises: OSError: if it cannot be opened, is no regular file, or is larger.
    """
    try:
        descriptor = os.open(path, _READ)
    except ValueError:  # NUL, or half of a character
        raise RefusedFileError(errno.EINVAL, "no file can have this name") from None
    status = os.fstat(descriptor)
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise RefusedFileError(errno.EINVAL, f"it is {_KINDS.get(kind, 'a device')}; expected a regular file")
    if largest is not None and status.st_size > largest:
        os.close(descriptor)
        raise _too_large(status.st_size, largest)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a file of at most `largest` bytes. Raises: OSError: as `open_file`."""
    with open_file(path, largest) as stream:
        # one byte more, for a file that grows; what the system makes up as it is read has no size before
        content = stream.read(max(os.fstat(stream.fileno()).st_size, _LEAST) + 1)
    if len(content) > largest:
        raise _too_large(len(content), largest)
    return content


def read_text(path: Path, largest: int = LARGEST) -> str:
    """Return a text in UTF-8, with or without the mark that Windows puts before it.

    Raises:
        OSError: as `open_file`.
        ValueError: if it is in another encoding.
    """
    return _decode(read_bytes(path, largest))


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """Return the value in a JSON file. Raises: OSError: as `open_file`. ValueError: as `parse_json`."""
    return parse_json(read_text(path, largest))


def read_toml(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Return the table in a TOML file. Raises: OSError: as `open_file`. ValueError: if it is not TOML, or none that can be used."""
    try:
        found = tomllib.loads(read_text(path, largest))
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ValueError(_of_digits(error)) from None
    _check_values(found, forbidden="\0")  # names of files are in there
    return found


def parse_json(text: str | bytes) -> Any:
    """Return the value in a JSON text. NaN and infinity are read, as Python writes them; records refuse them by their place.

    Raises: ValueError: if it is not JSON, a key stands twice in one table, it is nested deeper than anything sensible, or a number
        has thousands of digits.
    """
    try:
        text = text if isinstance(text, str) else _decode(text)
        found = json.loads(text, object_pairs_hook=_table)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}" if text.strip() else "it is empty") from None
    except ValueError as error:
        raise ValueError(_of_digits(error)) from None
    _check_values(found)
    return found


def reason(error: BaseException) -> str:
    """Return in a few words why a document cannot be read: without its path, which stands before."""
    return getattr(error, "strerror", None) or first_line(error)


def is_plain_line(text: str) -> bool:
    """Whether a text can be a name on a line of its own: some of it is seen, and it does nothing to a terminal."""
    return bool(text.strip()) and text.isprintable()


def leads_out(folder: Path, name: str, document: Path | None = None) -> bool:
    """Whether a name that a document gives for a file in its folder, also below it, is that of a file elsewhere.

    Where the `document` itself is a link, as in the cache of a hub, it may be one into the folder in which that really lies.
    """
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        return True
    # not Path.resolve, which raises where links lead in a circle
    folders = [os.path.realpath(folder)]
    if document is not None:
        folders.append(str(Path(os.path.realpath(document)).parent))
    return not any(Path(os.path.realpath(folder / name)).is_relative_to(place) for place in folders)


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start + 1})") from None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one table")
    return table


def _check_values(value: object, forbidden: str = "") -> None:
    """Check how deep a document is, and that its texts are without some characters. Raises: ValueError."""
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        texts = (text for each in level for text in (each if isinstance(each, dict) else (each,)))
        if forbidden and any(isinstance(text, str) and forbidden in text for text in texts):
            raise ValueError(f"a text in it holds {forbidden!r}")
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [item for items in inside for item in items]
        if not level:
            return
    raise _too_deep()


def _of_digits(error: ValueError) -> str:
    """Return what an error of a parser says; that of Python's limit to the digits of an integer tells programmers what to do."""
    return "a number in it has thousands of digits" if "integer string conversion" in str(error) else first_line(error)


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_DEEPEST} deep")


def _too_large(size: int, largest: int) -> RefusedFileError:
    return RefusedFileError(errno.EFBIG, f"it has {size} bytes or more; expected at most {largest}")
