"""What is said of a disk that is full, read-only, over its quota or broken: one line with the path and what is needed."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.errors import OutputError
from convnext_deploy.system.posix import free_bytes

OUT, CACHE_DIR = "another folder with --out", "another folder with --cache-dir"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that mean that there is no room for what is written."""
DISK_FAULTS = (*FULL, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors of the disk and not of what was asked of it."""
_IN_TEXT = (
    r"(?:\(os error |Os \{ code: )(\d+)"  # how libraries in Rust write them, such as safetensors (until 0.5 the second)
)
_PARTIAL = r"\.(.+)\.partial"
_ADVICE = {
    errno.EROFS: "mount it for writing, for it is read-only",
    errno.EIO: "see what dmesg says, for the disk itself fails",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there",
}


def system_error(error: BaseException) -> OSError | None:
    """Return the operating system's error that stands behind an error, whatever library wrapped it; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        if (found := re.search(_IN_TEXT, str(seen))) is not None:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


@dataclass(frozen=True)
class Target:
    """What is written, as a message tells it.

    `path`: its final one. `needed`: bytes of the whole; None: not known. `what`: it holds; empty: the path says it.
    `instead`: what else a user may choose.
    """

    path: Path
    needed: int | None = None
    what: str = ""
    instead: str = OUT


def cannot_write(target: Target, error: OSError, least: int = 0) -> OutputError:
    """Return the error of a file or folder that could not be written; `least` bytes of it had been, so that it needs more."""
    parts = ((found[1] if (found := re.fullmatch(_PARTIAL, part)) else part) for part in target.path.parts)
    shown = Path(*parts)  # of what lies in a folder that is not complete yet, too
    start = f"{target.what} cannot be written to {shown}" if target.what else f"{shown} cannot be written"
    advice = _ADVICE.get(error.errno or 0, "")
    if error.errno in FULL:
        more = "" if target.needed else "more than "
        needs = f"it needs {more}{target.needed or least:,} bytes" if target.needed or least else "it needs more"
        advice = f"{_room(target.path, error.errno or 0, needs)}, and give the same command again"
    advice = f"{advice}, or choose {target.instead}" if advice else f"choose {target.instead}"
    return OutputError(f"{start} ({error.strerror or error}); {advice}.")


@contextmanager
def naming_disk_faults() -> Iterator[None]:
    """Let what a library writes by itself, in the folder of temporary files, end in one line when the disk takes no more.

    Raises: OutputError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        import tempfile

        folder = Path(tempfile.gettempdir())
        path = folder if error.filename is None else Path(os.fsdecode(error.filename))
        what = "a temporary file" if error.filename is None else ""
        instead = "another folder with TMPDIR" if path.is_relative_to(folder) else OUT
        raise cannot_write(Target(path, what=what, instead=instead), error) from None


def _room(path: Path, number: int, needs: str) -> str:
    """Say what has to be done for a file to find its room, and how much there is, of bytes or of entries."""
    places = (path.absolute(), *path.absolute().parents)
    folder = next((place for place in places if place.is_dir()), Path(path.absolute().anchor))
    if number == errno.EDQUOT:
        return f"raise the quota or remove files of yours ({needs})"
    if number == errno.EFBIG:
        return f"raise the limit on the size of files by {_size_limit()} ({needs})"
    free = free_bytes(folder)
    if free is None:
        return "make room (the file system takes no more files, see df -i)"
    return f"make room ({needs}, and {free:,} are free)"


def _size_limit() -> str:
    """Return who limits the size of files: the shell that started this process, or the file system."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limits
        return "the file system"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return "the file system" if limit == resource.RLIM_INFINITY else f"ulimit -f, {limit:,} bytes"
