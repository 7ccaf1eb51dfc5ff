"""Images that break amid their pixels: every image is decoded once, and what came of it is remembered by what its file holds."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import PIL

from convnext_deploy.data.decoding import map_files
from convnext_deploy.data.pixels import quiet
from convnext_deploy.errors import OutputError
from convnext_deploy.system.files import write_bytes
from convnext_deploy.system.progress import Progress, SilentProgress

Item = TypeVar("Item")

_VERSION = 2  # of the file; raised when a decoder here takes what it refused before, or the other way round
_AT_ONCE = 1024  # images between two reports
_FEW = 4 * _AT_ONCE  # which are decoded before anybody wonders
_KEPT_EVERY_S = 60.0
_CHECKSUM, _COUNT, _SIZE = 32, 8, 16  # bytes
_NAME = "decoded.bin"


class Decoded:
    """What came of decoding images in full, by digests of what they hold, so that copies and other data sets need it only once."""

    def __init__(self) -> None:
        self._whole, self._broken = set[bytes](), dict[bytes, str]()
        self._file: Path | None = None
        self._is_kept = True

    def learn_from(self, folder: Path) -> None:
        """Take what is kept in a folder."""
        whole, broken = _load(folder / _NAME)
        self._whole |= whole
        self._broken |= broken

    def keep_in(self, folder: Path) -> None:
        """Take what is kept in a folder, and keep there what is new; the first folder named counts."""
        if self._file is None:
            self._file = folder / _NAME
            self.learn_from(folder)
            self._save()

    def find_damaged(
        self,
        items: Sequence[Item],
        digests: Sequence[bytes],
        find: Callable[[Item], str | None],
        progress: Progress | None = None,
    ) -> list[tuple[Item, str]]:
        """Return the images that cannot be decoded, in the order given, each with the reason.

        Args:
            items: what stands for the images.
            digests: of what they hold, 16 bytes each.
            find: decodes an image, and returns why it cannot be; called in several threads, within `quiet`.
            progress: where to report when it takes long; None: nowhere.
        """
        unknown = {
            digest: item
            for digest, item in zip(digests, items, strict=True)
            if digest not in self._whole and digest not in self._broken
        }
        if unknown:
            self._decode(list(unknown), list(unknown.values()), find, progress or SilentProgress())
        return [
            (item, self._broken[digest]) for item, digest in zip(items, digests, strict=True) if digest in self._broken
        ]

    def _decode(
        self, digests: list[bytes], items: list[Item], find: Callable[[Item], str | None], progress: Progress
    ) -> None:
        shown = progress if len(items) > _FEW else SilentProgress()
        self._is_kept, kept = False, time.monotonic()
        try:
            with quiet(), shown.task("decode all images once, to find damage", len(items), "images") as task:
                for start in range(0, len(items), _AT_ONCE):
                    part = slice(start, start + _AT_ONCE)
                    # few to a task, because one takes milliseconds
                    for digest, reason in zip(digests[part], map_files(find, items[part], 16), strict=True):
                        if reason is None:
                            self._whole.add(digest)
                        else:
                            self._broken[digest] = reason
                    task.advance(len(items[part]))
                    if time.monotonic() - kept > _KEPT_EVERY_S:
                        self._save()
                        kept = time.monotonic()
        finally:  # what was interrupted goes on from here
            self._save()

    def _save(self) -> None:
        """Keep what is known, completely or not at all. Where that fails nothing is lost but time, and nothing is said."""
        if self._file is None or self._is_kept:
            return
        lines = "\n".join(f"{digest.hex()} {reason}" for digest, reason in sorted(self._broken.items()))
        body = len(self._whole).to_bytes(_COUNT, "little") + b"".join(sorted(self._whole)) + lines.encode()
        with contextlib.suppress(OutputError):
            write_bytes(self._file, _checksum(body) + body)
            self._is_kept = True


def _load(file: Path) -> tuple[set[bytes], dict[bytes, str]]:
    """Return the digests of images that are whole, and of others with the reason; none if nothing is there as it was written."""
    try:
        content = file.read_bytes() if file.is_file() else b""
    except OSError:
        content = b""
    body = content[_CHECKSUM:]
    if len(body) < _COUNT or content[:_CHECKSUM] != _checksum(body):
        return set(), {}
    end = _COUNT + _SIZE * int.from_bytes(body[:_COUNT], "little")
    whole = {body[start : start + _SIZE] for start in range(_COUNT, end, _SIZE)}
    pairs = (line.partition(" ") for line in body[end:].decode().split("\n") if line)
    return whole, {bytes.fromhex(digest): reason for digest, _, reason in pairs}


def _checksum(body: bytes) -> bytes:
    # other releases of the decoder may take other files
    return hashlib.sha256(f"{_VERSION} {PIL.__version__} ".encode() + body).digest()
