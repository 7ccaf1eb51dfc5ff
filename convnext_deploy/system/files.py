"""Files and folders that are written completely or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convnext_deploy.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def create_output_folder(path: Path) -> None:
    """Make `path` and check that files can be written there.

    Raises: OutputError: if it is a file, or cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
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
        shutil.rmtree(leftover, ignore_errors=True)
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
            shutil.rmtree(leftover, ignore_errors=True)
