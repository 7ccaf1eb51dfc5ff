"""Files and folders that are written completely or not at all, and are readable as the umask says."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_deploy.errors import DeployError, OutputError
from convnext_deploy.system.disk_faults import OUT, Target, cannot_write, system_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray


@contextmanager
def whole_file(
    path: Path, *, needed: int | None = None, what: str = "", instead: str = OUT, shared: bool = False
) -> Iterator[Path]:
    """Yield an empty file that takes the place of `path` when the block ends without an error; its folder is made.

    The block does nothing but write it. The umask decides who may read it, also where a library makes files for its owner alone.

    Args:
        path: of the file.
        needed: its size in bytes, for the message when there is no room; None: not known.
        what: it holds, for that message; empty: the path says it.
        instead: what a user may choose when it cannot be written.
        shared: several processes may write it at the same time, each its own; they are equal, and the last one stays.

    Raises: OutputError: if it cannot be written; nothing is left of it then, and what was there before stays.
    """
    path = resolve_target(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial" if shared else f".{path.name}.partial")
    least = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        try:
            yield partial
            if stat.S_IMODE(partial.stat().st_mode) != mode:
                partial.chmod(mode)
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                least = partial.stat().st_size
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
    except DeployError:
        raise
    except Exception as error:
        if (found := system_error(error)) is None:
            raise
        raise cannot_write(Target(path, needed, what, instead), found, least) from None


class ClosableWriter(io.BufferedWriter):
    """A file for `torch.save`: once it is closed, it drops what is written.

    PyTorch's writer writes the end of its archive when it is destroyed, should an exception (of a signal, say) have kept it from
    doing so before; by then the file is closed, and an error in a destructor of C++ ends the process.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))

    def write(self, data: ReadableBuffer) -> int:
        """Write bytes; return how many."""
        return memoryview(data).nbytes if self.closed else super().write(data)


def write_bytes(path: Path, *parts: bytes | memoryview, shared: bool = False) -> None:
    """Write parts in order, completely or not at all; `shared` as in `whole_file`. Raises: OutputError: if it cannot be written."""
    with whole_file(path, needed=sum(map(len, parts)), shared=shared) as partial, partial.open("wb") as file:
        for part in parts:
            file.write(part)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all. Raises: OutputError: if it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files into a folder, by their names: each completely, and none where one cannot be written.

    They take their places after all are written, the last one first. Should the system refuse that midway, which a full disk does
    not bring about, the last ones are new and the first ones as they were.

    Raises: OutputError: if one cannot be written.
    """
    with contextlib.ExitStack() as written:
        for name, text in texts.items():
            content = text.encode("utf-8")
            written.enter_context(whole_file(folder / name, needed=len(content))).write_bytes(content)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a small array as a `.npy` file. Raises: OutputError: if it cannot be written."""
    import numpy as np

    content = io.BytesIO()  # NumPy tells of a full disk how many items it wrote, and not what the system said
    np.save(content, array)
    write_bytes(path, content.getvalue())


def copy_file(source: Path, target: Path) -> None:
    """Copy the contents of a file completely or not at all. Raises: DeployError: if it cannot be written or read."""

    def read() -> bytes:
        try:
            return file.read(1 << 20)
        except OSError as error:
            raise DeployError(f"{source} cannot be read ({error.strerror}).") from None

    with (
        source.open("rb") as file,
        whole_file(target, needed=os.fstat(file.fileno()).st_size) as partial,
        partial.open("wb") as written,
    ):
        while block := read():
            written.write(block)


def append(path: Path, content: bytes) -> None:
    """Append to a file all of `content` or nothing; file and folder are made. Raises: OutputError: if it cannot be written."""
    left = content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while left:  # a disk that is nearly full takes a part, and only then raises
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise cannot_write(Target(path, len(content)), error) from None


def resolve_target(path: Path) -> Path:
    """Return what a file is to be written as: where a link leads to, so that the link stays.

    Raises: OutputError: if a folder, device, pipe or socket lies there, which a file would take the place of.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.lstat().st_mode
    except OSError:  # there is nothing, or whoever writes will say what is wrong
        return target
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file but a device, pipe or socket"
        raise OutputError(f"{path} is {what} and is not overwritten; give the name of another file.")
    return target


def create_output_folder(path: Path) -> None:
    """Make `path` and check that files can be written there.

    Raises: OutputError: if it is a file, cannot be created or written, or has a name that libraries in Rust do not take.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise OutputError(
            f"the output folder {path} has a name that is no UTF-8 text, and weights cannot be written there; choose another one "
            "with --out."
        ) from None
    probe = path / f".write-test-{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"the output folder {path} cannot be written ({error.strerror}); choose another one with --out."
        ) from None


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of `target` when the block ends without an error.

    A reader of `target` sees the old folder or the complete new one; what a killed process left is removed by the next.

    Raises: OutputError: if the folder cannot be made or put in its place.
    """
    partial = target.with_name(f".{target.name}.partial")
    old = target.with_name(f".{target.name}.old")
    for leftover in (partial, old):
        _remove(leftover)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(Target(target), error) from None
    try:
        yield partial
        _put(partial, target, old)
    finally:
        for leftover in (partial, old):
            _remove(leftover)


def _put(partial: Path, target: Path, old: Path) -> None:
    try:
        if target.exists():
            target.replace(old)
        try:
            partial.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
    except OSError as error:
        raise cannot_write(Target(target), error) from None


def _remove(path: Path) -> None:
    if path.is_symlink():  # the folder that it leads to is not ours to remove
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
