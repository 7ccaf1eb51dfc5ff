"""What files hold: read once, and remembered for as long as the system says that a file was not touched.

A file in the cache folder keeps for each image folder, by what the system says of each file: a digest of all that it holds and
one of its end, and of an image that it can be opened, and its width and height. It is mapped into memory, and not trusted unless it
is as it was written.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.contents_table import (
    DIGEST,
    ENDED,
    OPENED,
    READ,
    ROW,
    keys_of,
    links_of,
    load_table,
    save_table,
)
from convnext_deploy.data.damage import Decoded
from convnext_deploy.data.decoding import examine_file, map_files, printable
from convnext_deploy.data.files import STATUS, Files, as_files, describe
from convnext_deploy.data.pixels import quiet
from convnext_deploy.errors import DataError
from convnext_deploy.system.cache_folder import remove_unused
from convnext_deploy.system.distributed import shares_files
from convnext_deploy.system.posix import read_at
from convnext_deploy.system.progress import Progress, SilentProgress

LARGEST_WHOLE = 64 << 20  # bytes; of larger files blocks are read, evenly from the first to the last
BLOCKS, BLOCK = 256, 64 << 10
TAIL_BYTES = 4096  # which tell most files of equal size apart
_AT_ONCE = 4096  # files between two reports; of fewer nobody need know
_MANY_BYTES = 1 << 30  # which take seconds to read
_FRESH_NS = (
    2_000_000_000  # a file changed so shortly ago may change once more within one tick of the file system's clock
)
_LOOKED_UP = 1 << 16  # rows at a time
_FIELDS = {READ: "digest", ENDED: "tail", OPENED: "sides"}


class Contents:
    """What the files of a data set hold. Copies share one object of this kind, and so read every file once.

    `decoded`: what came of decoding images with these digests. `progress`: where to report what takes long; None: nowhere.
    `pixels`: small images as they are decoded, by a name that tells which these are, for the stages of a run.

    Args:
        root: the folder of the data set, after which the file in the cache folder is named.
        folder: where to keep what was found; None: nowhere, until `keep_in` is called.
        progress: see there.
    """

    def __init__(self, root: Path = Path(), folder: Path | None = None, progress: Progress | None = None) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()
        self._name = f"contents-{name[:32]}.bin"
        self._file: Path | None = None
        self._may_write, self._is_kept = False, False
        self._set(np.empty(0, ROW))
        self.progress = progress
        self.decoded = Decoded()
        self.pixels: dict[str, Any] = {}
        if folder is not None:
            self.keep_in(folder)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process of this machine finds in the same file."""
        state = {**self.__dict__, "progress": None, "pixels": {}}
        if shares_files():
            state |= {"decoded": Decoded(), **({"_table": None, "_keys": None} if self._is_kept else {})}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._table is None and self._file is not None:
            self._set(load_table(self._file))

    def __repr__(self) -> str:
        return f"Contents({self._file or self._name})"

    @property
    def folder(self) -> Path | None:
        """Where it is kept, if anywhere."""
        return None if self._file is None or not self._may_write else self._file.parent

    def keep_in(self, folder: Path, *, write: bool = True) -> None:
        """Take what is kept in a cache folder and, unless told otherwise, keep what is new there; the first folder named counts."""
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
        found = load_table(folder / self._name)
        self._is_kept = not len(self._table)
        if len(self._table):
            self._add(found)
        else:
            self._set(found)
        self.decoded.learn_from(folder)

    def read(self, paths: Sequence[Path], progress: Progress | None = None) -> NDArray[np.void]:
        """Return the digests of files, `(N,)` of 16 bytes, equal for equal sizes and contents.

        Args:
            paths: files, of which those that are known and unchanged cost a call of `stat` each, or nothing where they were listed.
            progress: where to report how many of the others have been read; None: where this object reports.

        Raises: DataError: if a file cannot be read.
        """
        return self._learn(as_files(paths), READ, digest_file, "read the contents of the images", progress)

    def read_ends(self, paths: Sequence[Path]) -> NDArray[np.uint64]:
        """Return hashes of the last bytes of files, `(N,)` uint64. Raises: DataError: if a file cannot be read."""
        return self._learn(as_files(paths), ENDED, _hash_end, "compare the ends of images of equal size")

    def count_unread(self, files: Files) -> int:
        """Return of how many files `read_ends` would read the last bytes."""
        parts = (files[start : start + _LOOKED_UP].status for start in range(0, len(files), _LOOKED_UP))
        return sum(int((self._look_up(part)["known"] & ENDED == 0).sum()) for part in parts)

    def find_unreadable(self, paths: Sequence[Path]) -> list[tuple[Path, str]]:
        """Return the files that are not readable images, in the order given, each with the reason.

        Opens what was not opened before, see `decoding.examine_file`.
        """
        files, reasons = as_files(paths), dict[Path, str]()

        def sides(path: Path) -> bytes:
            found = examine_file(path)
            if isinstance(found, str):
                reasons[path] = found
                raise _UnreadableError
            return np.array(found, "<u4").tobytes()

        with quiet():
            found = self._learn(files, OPENED, sides, "open every image once")
        if not reasons:
            return []
        closed = (files[place] for place in np.flatnonzero(found[:, 0] == 0).tolist())
        # one that has two names was looked at under the first
        return [(path, reasons.get(path) or str(examine_file(path))) for path in closed]

    def _learn(
        self, files: Files, kind: int, find: Callable[[Path], bytes], what: str, progress: Progress | None = None
    ) -> NDArray[Any]:
        """Return what is known of files, after finding out what is not."""
        now = time.time_ns()
        field = ROW[_FIELDS[kind]]
        found = np.zeros((len(files), *field.shape), field.base)
        missing = []
        for start in range(0, len(files), _LOOKED_UP):
            rows = self._look_up(files[start : start + _LOOKED_UP].status)
            found[start : start + len(rows)] = rows[_FIELDS[kind]]
            missing.append(start + np.flatnonzero(rows["known"] & kind == 0))
        unknown = np.concatenate(missing) if missing else np.empty(0, np.int64)
        if not len(unknown):
            return found
        links = links_of(files.take(unknown).status)
        several, unknown = unknown, unknown[np.unique(links)]
        takes_long = len(unknown) > _AT_ONCE or (
            kind == READ and files.take(unknown).status["size"].sum() > _MANY_BYTES
        )
        shown = progress or self.progress or SilentProgress()
        new = [np.empty(0, ROW)]
        try:
            with (shown if takes_long else SilentProgress()).task(what, len(unknown), "files") as task:
                for start in range(0, len(unknown), _AT_ONCE):
                    part = unknown[start : start + _AT_ONCE]
                    rows = self._find(files.take(part), kind, find)
                    found[part] = rows[_FIELDS[kind]]
                    new.append(rows[(rows["known"] & kind != 0) & (rows["inode"] >= 0)])
                    task.advance(len(part))
        finally:  # what was interrupted goes on from here
            self._add(np.concatenate(new))
            self._keep(now)
        found[several] = found[several[links]]
        return found

    def _find(self, files: Files, kind: int, find: Callable[[Path], bytes]) -> NDArray[np.void]:
        """Return rows of files, with what was found of those that could be examined.

        What the system says is asked for again, because a file may have changed since it was listed.
        """

        def examine(path: Path) -> tuple[tuple[int, int, int, int], bytes | None]:
            status = describe(path)  # before what it holds is read
            try:
                return status, find(path)
            except _UnreadableError:
                return status, None

        paths = list(files)
        examined = map_files(examine, paths)
        status = np.array([status for status, _ in examined], np.int64).reshape(-1).view(STATUS)
        rows = self._look_up(status)
        good = np.array([value is not None for _, value in examined])
        field = ROW[_FIELDS[kind]]
        values = np.frombuffer(b"".join(value for _, value in examined if value is not None), field.base)
        rows[_FIELDS[kind]][good] = values.reshape(-1, *field.shape)
        rows["known"][good] |= kind
        return rows

    def _keep(self, now: int) -> None:
        """Write what is known of files that did not change shortly before a time in nanoseconds."""
        lasting = np.maximum(self._table["modified"], self._table["changed"]) < now - _FRESH_NS
        self._is_kept = False
        if self._file is not None and self._may_write and lasting.any():
            self._is_kept = save_table(self._file, self._table[lasting]) and bool(lasting.all())
            remove_unused(self._file.parent)

    def _look_up(self, status: NDArray[np.void]) -> NDArray[np.void]:
        """Return rows of what is known of files, `(N,)` of `ROW`."""
        rows = np.zeros(len(status), ROW)
        if len(self._table):
            places = np.searchsorted(self._keys, keys_of(status)).clip(max=len(self._table) - 1)
            found = self._table[places]
            known = np.logical_and.reduce([found[name] == status[name] for name in STATUS.names or ()])
            rows[known] = found[known]
        for name in STATUS.names or ():
            rows[name] = status[name]
        return rows

    def _add(self, rows: NDArray[np.void]) -> None:
        """Remember what was found, in the place of older findings on the same files."""
        kept = self._table[~np.isin(self._table["inode"], rows["inode"])]
        table = np.concatenate([kept, rows])
        self._set(table[np.unique(keys_of(table), return_index=True)[1]])

    def _set(self, table: NDArray[np.void]) -> None:
        """Take a table that is sorted by its keys."""
        self._table, self._keys = table, keys_of(table)


class _UnreadableError(Exception):
    """A file is not what it is examined as."""


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


def _hash_end(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            end = read_at(stream.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
            return hashlib.sha256(end).digest()[:8]
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror}).") from None
