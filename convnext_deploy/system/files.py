"""Files and folders that are written completely or not at all."""

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convnext_deploy.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all. Raises: OutputError: if something lies there that is no file."""
    path = resolve_target(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


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

    Raises: OutputError: if it is a file, or cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{uuid.uuid4().hex}"
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
    """
    partial = target.with_name(f".{target.name}.partial")
    old = target.with_name(f".{target.name}.old")
    for leftover in (partial, old):
        _remove(leftover)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.replace(old)
        try:
            partial.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
    finally:
        for leftover in (partial, old):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_symlink():  # the folder that it leads to is not ours to remove
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
