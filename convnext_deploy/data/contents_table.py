"""The table of what files hold, in memory and in the cache folder."""

import contextlib
import hashlib
import mmap
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from convnext_deploy.data.files import STATUS
from convnext_deploy.errors import OutputError
from convnext_deploy.system.cache_folder import mark_used
from convnext_deploy.system.files import write_bytes

DIGEST = np.dtype("V16")
READ, ENDED, OPENED = 1, 2, 4  # bits of `known`
# `known`: which of the others are; `tail`: a hash of the last bytes; `sides`: width and height of an image that can be opened.
ROW = np.dtype([
    *((name, STATUS[name]) for name in STATUS.names or ()), ("known", "<u4"), ("sides", "<u4", 2), ("tail", "<u8"),
    ("digest", DIGEST),
])  # fmt: skip
"""What is known of a file."""
_VERSION = 2  # of digests and of the file that keeps them
_CHECKSUM, _RELEASE = 32, 16  # bytes before the table: SHA-256 of all that follows, and of Pillow's release


def links_of(status: NDArray[np.void]) -> NDArray[np.int64]:
    """Return for each file the place of the first that is the same file under another name, `(N,)`."""
    _, first, which = np.unique(keys_of(status), return_index=True, return_inverse=True)
    own, found = np.arange(len(status)), first[which]
    same = np.logical_and.reduce([status[found][name] == status[name] for name in STATUS.names or ()])
    return np.where(same & (status["inode"] >= 0), found, own)


def keys_of(rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return a number of what the system says of each file, by which a table is sorted."""
    mixed = np.zeros(len(rows), np.uint64)
    for name in STATUS.names or ():
        mixed = (mixed ^ rows[name].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def load_table(file: Path) -> NDArray[np.void]:
    """Return a kept table, mapped into memory; an empty one if there is none that is as it was written."""
    try:
        with file.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # there is none, or an empty one
        return np.empty(0, ROW)
    with contextlib.suppress(OSError):
        mark_used(file)
    body = memoryview(content)[_CHECKSUM:]
    if content[:_CHECKSUM] != _checksum(body) or len(body) < _RELEASE or (len(body) - _RELEASE) % ROW.itemsize:
        return np.empty(0, ROW)
    table = np.frombuffer(body, ROW, offset=_RELEASE)
    if bytes(body[:_RELEASE]) != _release():
        table = table.copy()
        table["known"] &= ~np.uint32(OPENED)
    return table


def save_table(file: Path, table: NDArray[np.void]) -> bool:
    """Keep a table, completely or not at all, and return whether it is. Where that fails nothing is lost but time."""
    body = memoryview(_release() + table.tobytes())
    with contextlib.suppress(OutputError):
        write_bytes(file, _checksum(body), body, shared=True)
        return True
    return False


def _release() -> bytes:
    """Return which release of Pillow opens images; another one may take what this one refuses, and the other way round."""
    return hashlib.sha256(PIL.__version__.encode()).digest()[:_RELEASE]


def _checksum(body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(f"{_VERSION} ".encode())
    digest.update(body)
    return digest.digest()
