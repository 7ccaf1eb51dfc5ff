"""Calls of POSIX that a system may lack, Windows most of them and macOS some, with what stands for them there."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

BINARY = getattr(os, "O_BINARY", 0)
"""For `os.open`: without it Windows changes the ends of lines."""
_BLOCK = 1 << 20
_HOLDING = threading.Lock()
_held: set[tuple[int, int, int]] = set()
"""Process, device and number of each file that is locked: a fork, whose process is another one, holds none of its parent's."""


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """Return up to `size` bytes of a file from `start` on. Raises: OSError."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)


def write_at(descriptor: int, content: memoryview, start: int) -> int:
    """Write into a file from `start` on, and return how many bytes were taken. Raises: OSError."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.write(descriptor, content)


def stat_entry(entry: os.DirEntry[str]) -> os.stat_result:
    """Return what the system says of a file in a listed folder; Windows tells of those no number of the file. Raises: OSError."""
    return Path(entry.path).stat() if os.name == "nt" else entry.stat()


def reserve(descriptor: int, size: int) -> None:
    """Make a file at least `size` bytes long, with room on the disk for all of them. Raises: OSError: if there is none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    # what lies there is written again: a file that was only made longer has holes, for which the disk keeps no room
    for start in range(0, size, _BLOCK):
        length = min(_BLOCK, size - start)
        content = memoryview(read_at(descriptor, length, start).ljust(length, b"\0"))
        while content:
            written = write_at(descriptor, content, start)
            content, start = content[written:], start + written


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file, which is made where there is none, until the block or this process ends, however it does.

    To the system a lock is the process's own: it would grant it again to another thread, and drop it for all when any one of the
    handles on the file is closed. So a file that this process has locked is refused here, before it is opened again.

    Raises:
        BlockingIOError: if another process, or this one, has locked it.
        OSError: if it cannot be opened or locked.
    """
    with _HOLDING:
        if path.exists() and _key(path.stat()) in _held:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
        file = path.open("ab")
        try:
            _lock(file)
            key = _key(os.fstat(file.fileno()))
        except BaseException:
            file.close()
            raise
        _held.add(key)
    try:
        yield
    finally:
        with _HOLDING:
            file.close()
            _held.discard(key)


def _key(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _lock(file: IO[bytes]) -> None:
    """Lock an open file until it is closed. Raises: BlockingIOError: if another process has locked it; OSError."""
    try:
        try:
            import fcntl
        except ImportError:
            windows: Any = importlib.import_module("msvcrt")
            file.seek(0)
            windows.locking(file.fileno(), windows.LK_NBLCK, 1)
            return
        # lockf and not flock: processes that decode images must not inherit the lock and outlive a killed parent with it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # what Windows says of a locked file, and POSIX lets systems say
        raise BlockingIOError(error.errno, error.strerror) from None


def fork() -> int:
    """Call `os.fork` while no other thread is about to lock a file: the new process could never lock one."""
    with _HOLDING:
        return os.fork()


def free_bytes(folder: Path) -> int | None:
    """Return how many bytes a user may still write there; None where the file system has them and takes no more files.

    Raises: OSError.
    """
    if not hasattr(os, "statvfs"):
        import shutil

        return shutil.disk_usage(folder).free
    status = os.statvfs(folder)
    return None if status.f_files and not status.f_favail else status.f_bavail * status.f_frsize


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started with a session of its own, and all that it started, where the system can tell them.

    Raises: OSError: if there is nothing left to end.
    """
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def signals_named(**meanings: str) -> dict[int, str]:
    """Return what is said of signals by their numbers, of those that this system has."""
    return {int(getattr(signal, name)): text for name, text in meanings.items() if hasattr(signal, name)}
