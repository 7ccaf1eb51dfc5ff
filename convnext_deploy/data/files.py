"""The files of a data set as columns: their names below a folder and what the system says of each, without an object a file."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.errors import OutputError
from convnext_deploy.system.distributed import shares_files
from convnext_deploy.system.files import whole_file
from convnext_deploy.system.posix import stat_entry

STATUS = np.dtype([("inode", "<i8"), ("size", "<i8"), ("modified", "<i8"), ("changed", "<i8")])
"""What the system says of a file. The time of change is set by the system alone, so that an image which was edited and given its
former time is found to be another one."""
IRREGULAR = (-1, -1, 0, 0)
"""In the place of that, for what is gone, or is no file but a pipe, a device or a folder."""
Rows = NDArray[np.int64]
_NO_SIGN = (1 << 63) - 1
_SHARED_FROM = 1 << 20  # bytes of names; fewer are sent from process to process


@dataclass(frozen=True)
class Columns:
    """Every file that was found below a folder.

    `names` `(bytes,)` uint8: paths below `root`, each followed by a NUL; `starts` `(N + 1,)` int64: where they begin and the last
    ends; `status` `(N,)` of `STATUS`. `folder`: where they are written when other processes of this machine are to map them.
    """

    root: str
    names: NDArray[np.uint8]
    starts: Rows
    status: NDArray[np.void]
    folder: Path | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.status)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the place of a file to processes that can map it, and the columns themselves to others."""
        if self.folder is not None and self.names.nbytes >= _SHARED_FROM and shares_files():
            file = self.folder / "names.bin"
            with contextlib.suppress(OutputError):
                parts = (self.starts, self.status, self.names)
                needed = sum(part.nbytes for part in parts)
                with whole_file(file, needed=needed, shared=True) as partial, partial.open("wb") as stream:
                    for part in parts:
                        stream.write(np.ascontiguousarray(part).data)
                return _map, (self.root, file, len(self), self.folder)
        return Columns, (self.root, self.names, self.starts, self.status, self.folder)

    def take(self, rows: Rows) -> Columns:
        """Return columns of some files alone, `(n,)`, in that order."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], sizes)
        return Columns(self.root, self.names[places], starts, self.status[rows])


def _map(root: str, file: Path, count: int, folder: Path) -> Columns:
    """Map columns that another process wrote just now; its memory and that of all others that do so is the same."""
    with file.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    starts = np.frombuffer(content, np.int64, count + 1)
    status = np.frombuffer(content, STATUS, count, offset=starts.nbytes)
    names = np.frombuffer(content, np.uint8, offset=starts.nbytes + status.nbytes)
    return Columns(root, names, starts, status, folder)


class Files(Sequence[Path]):
    """Some of the files of columns, as paths that are made when they are asked for.

    Args:
        columns: of all files.
        rows: of these, in their order; a range where they follow each other.
    """

    def __init__(self, columns: Columns, rows: Rows | range | None = None) -> None:
        self.columns = columns
        self.rows = range(len(columns)) if rows is None else _as_range(rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.columns, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Files: ...
    def __getitem__(self, index: int | slice) -> Path | Files:
        """Return a path, or the files of a slice."""
        if isinstance(index, slice):
            return Files(self.columns, self.rows[index])
        return Path(self.columns.root) / os.fsdecode(self.name(index))

    def __eq__(self, other: object) -> bool:
        """Whether these are the same paths in the same order."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Path.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def name(self, index: int) -> bytes:
        """Return the path of a file below the root, as the system has it."""
        row = self.rows[index]
        starts = self.columns.starts
        return self.columns.names[starts[row] : starts[row + 1] - 1].tobytes()

    def names_below(self, folder: Path) -> Iterator[bytes]:
        """Yield the names from a folder on, of the files that lie in it."""
        root = Path(self.columns.root)
        start = (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()
        prefix = b"" if start == "." else os.fsencode(start.rstrip("/") + "/")
        for place in range(len(self)):
            yield self.name(place).removeprefix(prefix)

    def size(self, index: int) -> int:
        """Return the size of a file in bytes."""
        return int(self.columns.status["size"][self.rows[index]])

    @property
    def status(self) -> NDArray[np.void]:
        """What the system said of each, `(N,)` of `STATUS`; `IRREGULAR` for what is no file."""
        found: NDArray[np.void] = self.columns.status[_index(self.rows)]
        return found

    def alone(self) -> Files:
        """Return these files without the columns of all others."""
        return Files(self.columns.take(np.asarray(self.rows, np.int64)))

    def take(self, places: Rows | range) -> Files:
        """Return the files that stand at these places, in that order."""
        return Files(self.columns, _as_range(np.asarray(self.rows, np.int64)[_index(places)]))


def _index(rows: Rows | range) -> Any:
    return (
        slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) and len(rows) else np.asarray(rows, np.int64)
    )


def _as_range(rows: Rows | range) -> Rows | range:
    """Return rows that follow each other as a range, which takes no memory."""
    if isinstance(rows, range) or not len(rows) or rows[-1] - rows[0] != len(rows) - 1 or (np.diff(rows) != 1).any():
        return rows
    return range(int(rows[0]), int(rows[-1]) + 1)


def join(parts: Sequence[Sequence[Path]]) -> Files:
    """Return files, one part after the other; parts of the same columns stay such."""
    files = [part for part in parts if isinstance(part, Files)]
    if len(files) < len(parts) or len({id(part.columns) for part in files}) != 1:
        return as_files([path for part in parts for path in part])
    return Files(files[0].columns, np.concatenate([np.asarray(part.rows, np.int64) for part in files]))


def pick(paths: Sequence[Path], places: Sequence[int] | Rows) -> Sequence[Path]:
    """Return the files at these places, as columns or as a list, as they come."""
    if isinstance(paths, Files):
        return paths.take(np.asarray(places, np.int64))
    return [paths[place] for place in places]


def as_files(paths: Sequence[Path]) -> Files:
    """Return files as columns. Of those that are not yet, the system is asked."""
    if isinstance(paths, Files):
        return paths
    listing = Listing(Path())
    for path in paths:
        listing.add(str(path), describe(path))
    return Files(listing.finish())


class Listing:
    """Files of folders as they are found. Raises: OSError: from its methods, if a folder cannot be listed.

    Args:
        root: the folder below which their names begin.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names, self._starts, self._status = bytearray(), array("q", [0]), array("q")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, name: str, status: tuple[int, int, int, int]) -> None:
        """Add a file by its name below the root and the numbers of `STATUS`."""
        self._status.extend(status)
        self._names += os.fsencode(name)
        self._names.append(0)
        self._starts.append(len(self._names))

    def add_below(self, folder: Path, is_wanted: Callable[[str], bool]) -> tuple[range, list[Path]]:
        """Add the files below a folder whose names are wanted, sorted by the parts of their paths, through links as well but never
        twice through the same folder; folders whose names begin with a dot are left out.

        Returns: the rows of these files, and all others.
        """
        first, others = len(self), list[Path]()
        prefix = folder.relative_to(self._root).as_posix()
        self._walk(str(folder), "" if prefix == "." else f"{prefix}/", is_wanted, others, {identity(folder)})
        return range(first, len(self)), others

    def _walk(
        self, folder: str, prefix: str, is_wanted: Callable[[str], bool], others: list[Path], seen: set[tuple[int, int]]
    ) -> None:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, _is_folder(entry), entry) for entry in found)
        inside = set()  # none of folders such as .thumbnails
        for name, is_folder, entry in entries:
            if is_folder and not name.startswith(".") and (found_there := identity(entry.path)) not in seen:
                seen.add(found_there)
                inside.add(name)
        for name, is_folder, entry in entries:
            if name in inside:
                self._walk(entry.path, f"{prefix}{name}/", is_wanted, others, seen)
            elif not is_folder and is_wanted(name):
                try:
                    self.add(prefix + name, _numbers(stat_entry(entry)))
                except OSError:
                    self.add(prefix + name, IRREGULAR)
            elif not is_folder:
                others.append(Path(entry.path))

    def finish(self, folder: Path | None = None) -> Columns:
        """Return the columns; `folder` as there."""
        names = np.frombuffer(self._names, np.uint8)
        status = np.frombuffer(self._status, np.int64).view(STATUS)
        return Columns(str(self._root), names, np.frombuffer(self._starts, np.int64), status, folder)


def describe(path: Path) -> tuple[int, int, int, int]:
    """Return what the system says of a file, the numbers of `STATUS`."""
    try:
        return _numbers(path.stat())
    except OSError:
        return IRREGULAR


def _numbers(status: os.stat_result) -> tuple[int, int, int, int]:
    if not stat.S_ISREG(status.st_mode):
        return IRREGULAR
    return status.st_ino & _NO_SIGN, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def identity(folder: Path | str) -> tuple[int, int]:
    """Return what is the same for the same folder, whatever leads to it. Raises: OSError: if it is not there."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
