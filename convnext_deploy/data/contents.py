"""What files hold, as short digests: read once, and remembered for as long as the system says that a file was not touched."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.damage import Decoded
from convnext_deploy.data.decoding import map_files, printable
from convnext_deploy.errors import DataError, OutputError
from convnext_deploy.system.files import write_bytes
from convnext_deploy.system.posix import read_at
from convnext_deploy.system.progress import Progress, SilentProgress

LARGEST_WHOLE = 64 << 20  # bytes; of larger files blocks are read, evenly from the first to the last
BLOCKS, BLOCK = 256, 64 << 10
DIGEST = np.dtype("V16")
_VERSION = 1  # of digests and of the file that keeps them
_AT_ONCE = 4096  # files between two reports; of fewer nobody need know
_MANY_BYTES = 1 << 30  # which take seconds to read
_FRESH_NS = (
    2_000_000_000  # a file changed so shortly ago may change once more within one tick of the file system's clock
)
_CHECKSUM = 32  # bytes of SHA-256 before the table, of all of it
# What the system says of a file. The time of change is set by the system alone, so that an image which was edited and given its
# former time is read again.
_STATUS = ("inode", "size", "modified", "changed")
_ROW = np.dtype([("inode", "<i8"), ("size", "<i8"), ("modified", "<i8"), ("changed", "<i8"), ("digest", DIGEST)])


class Contents:
    """Digests of the files of a data set. Copies of it share one object of this kind, and so read every file once.

    `decoded`: what came of decoding images with these digests.

    Args:
        root: the folder of the data set, after which the file in the cache folder is named.
        folder: where to keep digests; None: nowhere, until `keep_in` is called.
    """

    def __init__(self, root: Path = Path(), folder: Path | None = None) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()
        self._name = f"contents-{name[:32]}.bin"
        self._file: Path | None = None
        self._may_write = False
        self._table = np.empty(0, _ROW)
        self.decoded = Decoded()
        if folder is not None:
            self.keep_in(folder)

    def keep_in(self, folder: Path, *, write: bool = True) -> None:
        """Take digests from a cache folder and, unless told otherwise, keep new ones there; the first folder named counts."""
        if self._file is None:
            self._file, self._may_write = folder / self._name, write
            has_more = bool(len(self._table))
            self.learn_from(folder)
            if write:
                self.decoded.keep_in(folder)
                if has_more:
                    self._keep(time.time_ns())

    def learn_from(self, folder: Path) -> None:
        """Take what is kept in a folder, and keep nothing there."""
        self._add(_load(folder / self._name))
        self.decoded.learn_from(folder)

    def read(self, paths: Sequence[Path], progress: Progress | None = None) -> NDArray[np.void]:
        """Return the digests of files, `(N,)` of 16 bytes, equal for equal sizes and contents.

        Args:
            paths: files, of which those that are known and unchanged cost a call of `stat` each.
            progress: where to report how many of the others have been read.

        Raises: DataError: if a file cannot be read.
        """
        now = time.time_ns()
        rows = np.empty(len(paths), _ROW)
        for name, column in zip(_STATUS, np.array(_status(paths), np.int64).reshape(-1, 4).T, strict=True):
            rows[name] = column
        known = self._look_up(rows)
        unknown = np.flatnonzero(~known)
        if not len(unknown):
            return rows["digest"]
        takes_long = len(unknown) > _AT_ONCE or rows["size"][unknown].sum() > _MANY_BYTES
        shown = progress if progress is not None and takes_long else SilentProgress()
        with shown.task("read the contents of the images", len(unknown), "files") as task:
            for start in range(0, len(unknown), _AT_ONCE):
                chosen = unknown[start : start + _AT_ONCE]
                rows["digest"][chosen] = np.frombuffer(
                    b"".join(map_files(digest_file, [paths[i] for i in chosen])), DIGEST
                )
                task.advance(len(chosen))
        self._add(rows[unknown])
        self._keep(now)
        return rows["digest"]

    def _keep(self, now: int) -> None:
        """Write the digests of files that did not change shortly before a time in nanoseconds."""
        lasting = np.maximum(self._table["modified"], self._table["changed"]) < now - _FRESH_NS
        if self._file is not None and self._may_write and lasting.any():
            _save(self._file, self._table[lasting])

    def _look_up(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Enter the digests that are known, and return of which rows they are."""
        if not len(self._table):
            return np.zeros(len(rows), np.bool_)
        places = np.searchsorted(_mixed(self._table), _mixed(rows)).clip(max=len(self._table) - 1)
        found = self._table[places]
        known: NDArray[np.bool_] = np.logical_and.reduce([found[name] == rows[name] for name in _STATUS])
        rows["digest"][known] = found["digest"][known]
        return known

    def _add(self, rows: NDArray[np.void]) -> None:
        """Remember digests, in the place of older ones of the same files."""
        kept = self._table[~np.isin(self._table["inode"], rows["inode"])]
        table = np.concatenate([kept, rows])
        self._table = table[np.argsort(_mixed(table), kind="stable")]


def names_below(root: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Yield the paths from a folder on, of those that lie in it; as texts, because paths take their time."""
    start = "" if root == Path() else f"{root.as_posix().rstrip('/')}/"
    for path in paths:
        yield path.as_posix().removeprefix(start)


def digest_file(path: Path) -> bytes:
    """Return 16 bytes of the SHA-256 of a file's size and contents, or of blocks of it where it is larger than `LARGEST_WHOLE`.

    Raises: DataError: if it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            descriptor = stream.fileno()
            return digest_parts(os.fstat(descriptor).st_size, lambda size, start: read_at(descriptor, size, start))
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror}).") from None


def digest_parts(size: int, read: Callable[[int, int], bytes]) -> bytes:
    """Return the digest of a file of `size` bytes, wherever it is; `read(size, start)` returns a part of it."""
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    if size > LARGEST_WHOLE:
        for number in range(BLOCKS):
            digest.update(read(BLOCK, number * (size - BLOCK) // (BLOCKS - 1)))
    else:
        start = 0
        while block := read(1 << 20, start):
            digest.update(block)
            start += len(block)
    return digest.digest()[: DIGEST.itemsize]


def _status(paths: Sequence[Path]) -> list[tuple[int, int, int, int]]:
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{printable(path)} cannot be read ({error.strerror}).") from None
        inode = status.st_ino & ((1 << 63) - 1)  # which has no sign
        found.append((inode, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return found


def _mixed(rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return a number of what the system says of each file, by which a table is sorted."""
    mixed = np.zeros(len(rows), np.uint64)
    for name in _STATUS:
        mixed = (mixed ^ rows[name].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _load(file: Path) -> NDArray[np.void]:
    """Return a kept table; an empty one if there is none that is as it was written."""
    try:
        content = file.read_bytes() if file.is_file() else b""
    except OSError:
        return np.empty(0, _ROW)
    body = memoryview(content)[_CHECKSUM:]
    if content[:_CHECKSUM] != _checksum(body) or len(body) % _ROW.itemsize:
        return np.empty(0, _ROW)
    return np.frombuffer(body, _ROW)


def _save(file: Path, table: NDArray[np.void]) -> None:
    """Keep a table, completely or not at all. Where that fails nothing is lost but time, and nothing is said."""
    body = table.tobytes()
    with contextlib.suppress(OutputError):
        write_bytes(file, _checksum(body) + body)


def _checksum(body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(f"{_VERSION} ".encode())
    digest.update(body)
    return digest.digest()
