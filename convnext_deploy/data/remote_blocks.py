"""Files on other machines as files that can be read anywhere: blocks of them are kept on this machine, as far as there is room.

Processes, their threads and runs share the blocks. Each is fetched when the first of them needs it, and the oldest go when the
disk fills up.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from convnext_deploy.data.remote_files import RemoteFile, read_part
from convnext_deploy.system.disk_faults import CACHE_DIR
from convnext_deploy.system.files import whole_file
from convnext_deploy.system.posix import locked

BLOCK = 8 << 20
"""Bytes that are asked for at once: of some hundred images, and enough to make up for the time until an answer begins."""
_BUFFER = 64 << 10
_KEPT_FREE = 0.1  # of the disk
_MADE_FREE, _LEAST_KEPT = (
    64,
    256,
)  # blocks removed at once, because looking for the oldest takes its time, and left in any case
_WAIT_S, _LONGEST_WAIT_S = 0.02, 120.0


@dataclass(frozen=True)
class RemoteBlocks:
    """A remote file and the folder of its blocks on this machine."""

    file: RemoteFile
    folder: Path

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the file, fewer at its end. Raises: RemoteError, OutputError."""
        end = min(start + size, self.file.size)
        parts = []
        while start < end:
            number, first = divmod(start, BLOCK)
            part = self._read_block(number, first, min(end - start, BLOCK - first))
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def forget(self, start: int, size: int) -> None:
        """Have bytes of the file fetched again."""
        for number in range(start // BLOCK, (start + max(size, 1) - 1) // BLOCK + 1):
            with contextlib.suppress(OSError):
                self._path(number).unlink()

    def open(self) -> BinaryIO:
        """Return the file as a stream."""
        return io.BufferedReader(_Stream(self), _BUFFER)

    def _read_block(self, number: int, first: int, size: int) -> bytes:
        path = self._path(number)
        if (content := self._kept(path, number, first, size)) is not None:
            return content
        with _alone(self.folder / "lock"):
            if (content := self._kept(path, number, first, size)) is not None:
                return content  # somebody else has fetched it
            found = self._fetch(number)
        return found[first : first + size]

    def _kept(self, path: Path, number: int, first: int, size: int) -> bytes | None:
        """Return a part of a block that is on this machine whole; None: it is not."""
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != self._length(number):
                    return None
                stream.seek(first)
                content = stream.read(size)
                return content if len(content) == size else None
        except OSError:
            return None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.block"

    def _length(self, number: int) -> int:
        return min(BLOCK, self.file.size - number * BLOCK)

    def _fetch(self, number: int) -> bytes:
        """Fetch a block and keep it, or all blocks where the server sends no parts."""
        length = self._length(number)
        content = read_part(self.file, number * BLOCK, length)
        if len(content) == length:
            self._keep(number, content)
            return content
        for other in range(-(-self.file.size // BLOCK)):
            self._keep(other, content[other * BLOCK : (other + 1) * BLOCK])
        return content[number * BLOCK :][:length]

    def _keep(self, number: int, content: bytes) -> None:
        _make_room(self.folder.parent, len(content))
        path = self._path(number)
        what = "blocks of remote shards"
        with whole_file(path, needed=len(content), what=what, instead=CACHE_DIR, shared=True) as partial:
            partial.write_bytes(content)


def blocks_of(file: RemoteFile, cache_dir: Path) -> RemoteBlocks:
    """Return the blocks of a file, which are others when the server says that it is another one."""
    key = hashlib.sha256(repr((BLOCK, file.url, file.size, file.identity)).encode()).hexdigest()[:32]
    return RemoteBlocks(file, cache_dir / "remote" / key)


class _Stream(io.RawIOBase):
    """A remote file."""

    def __init__(self, blocks: RemoteBlocks) -> None:
        self.blocks, self.place = blocks, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.blocks.file.size}[whence]
        if start + offset < 0:
            raise ValueError("a place before the beginning of the file")
        self.place = start + offset
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        content = self.blocks.read(self.place, len(buffer))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep all others from fetching the same; where the disk knows no locks, or one is held for minutes, do without."""
    until = time.monotonic() + _LONGEST_WAIT_S
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            while time.monotonic() < until:
                try:
                    stack.enter_context(locked(path))
                    break
                except BlockingIOError:
                    time.sleep(_WAIT_S)
        yield


def _make_room(folder: Path, needed: int) -> None:
    """Remove the oldest blocks where less than a tenth of the disk would be left."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        if usage.free - needed >= _KEPT_FREE * usage.total:
            return
        ages = []
        for path in folder.glob("*/*.block"):
            with contextlib.suppress(OSError):  # removed by another process
                ages.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(ages)[:-_LEAST_KEPT][:_MADE_FREE]:
            path.unlink(missing_ok=True)
