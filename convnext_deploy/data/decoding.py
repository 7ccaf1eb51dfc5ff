"""Decode image files to upright 8-bit pixels, and check that a file is a readable image."""

import contextlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from convnext_deploy.data.pixels import open_image, quiet, to_8_bit
from convnext_deploy.errors import DataError, RemoteError, first_line
from convnext_deploy.errors import printable as printable

Item = TypeVar("Item")
Result = TypeVar("Result")

# Where these end; a file that does not has been cut, or has something appended to it.
_ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_ENDING_BYTES = 64
_GREY = frozenset((127, 128))  # of a block of which nothing is known, in CMYK too
_NOISE = bytes(range(1, 255)) * 4
_MORE = _NOISE + b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))  # for every restart interval
_CHUNK = 256  # files per task
_THREADS = 8  # they wait for the disk together
_FEW = 64  # files that tell how fast one thread is, and as many for each of several


@dataclass(frozen=True)
class Encoded:
    """An image file, or a part of a file: what a user calls it, and what opens it."""

    name: object
    open: Callable[[], BinaryIO]


def encoded_file(path: Path) -> Encoded:
    """Return an image file."""
    # A stream, because Pillow maps files that it opens itself into memory, and then garbles rotated TIFF images.
    return Encoded(path, lambda: _open_file(path))


def decode_image(encoded: Encoded) -> Image.Image:
    """Decode an image as `to_8_bit` does. Raises: DataError: with its name, if it cannot be read."""
    with opened(encoded) as image:
        return to_8_bit(image)


@contextlib.contextmanager
def opened(encoded: Encoded) -> Iterator[Image.Image]:
    """Open an image by its header, to be decoded within. Raises: DataError: with its name, if it cannot be read."""
    try:
        with quiet(), encoded.open() as stream, open_image(stream) as image:
            yield image
    except (MemoryError, RemoteError):
        raise  # which say nothing of the image
    except Exception as error:  # damaged files make Pillow's readers raise errors of every kind
        raise DataError(
            f"{printable(encoded.name)} cannot be read as an image ({_reason(error)}); repair or remove it, or leave it out with "
            "--skip-unreadable."
        ) from None


def map_files(function: Callable[[Item], Result], items: Sequence[Item], chunk: int = _CHUNK) -> list[Result]:
    """Call a function that reads a file for each of `items`, and return the results in order.

    The first ones tell whether threads, `chunk` files to a task, are faster. They are where the disk or the network is waited for
    and where images are decoded; where the disk answers at once and little is done with a file, they take three times as long as
    one thread, because they wait for the interpreter's lock.
    """

    def work(start: int, size: int) -> list[Result]:
        return [function(item) for item in items[start : start + size]]

    def in_threads(start: int, end: int, size: int) -> Iterator[Result]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for part in pool.map(lambda place: work(place, min(size, end - place)), range(start, end, size)):
                yield from part

    few = min(chunk, _FEW)
    found = work(0, 1)  # which may load libraries
    began = time.perf_counter()
    found += work(1, few)
    tried = time.perf_counter()
    first, end = min(len(items), 1 + few), min(len(items), 1 + few + _THREADS * few)
    found += in_threads(first, end, few)
    alone = (tried - began) * (end - first) / few
    if time.perf_counter() - tried < alone:
        return [*found, *in_threads(end, len(items), chunk)]
    return found + work(end, len(items))


def examine_file(path: Path) -> tuple[int, int] | str:
    """Return width and height of an image file, in pixels, or why it cannot be read. To be called within `quiet`.

    Opens the header, and decodes in full only JPEG and PNG files that do not end as they should. Damage amid the pixels is found by
    `find_damage`, which decodes. Costs about 25 µs per file on one core when the disk answers at once.
    """
    try:
        with _open_file(path) as stream:
            sides = (0, 0)

            def look(image: Image.Image) -> None:
                nonlocal sides
                sides = image.size
                _look(image, stream)

            return _why_not(stream, look) or sides
    except (OSError, DataError) as error:
        return _reason(error)


def _open_file(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError("not a regular file")  # opening a pipe would wait for ever
    return path.open("rb")


def find_defect(stream: BinaryIO) -> str | None:
    """Return why an image file cannot be read, or None, without decoding it in full where possible. To be called within `quiet`."""
    return _why_not(stream, lambda image: _look(image, stream))


def _look(image: Image.Image, stream: BinaryIO) -> None:
    # integers of 32 bits and floats may be out of range
    if image.mode in ("I", "F") or _ends_oddly(image, stream):
        to_8_bit(image)


def find_damage(stream: BinaryIO) -> str | None:
    """Return why an image file cannot be decoded to its last pixel, or None. To be called within `quiet`.

    JPEG files are decoded at an eighth of their size, which reads all of the file in less than half of the time.
    """

    def decode(image: Image.Image) -> None:
        if image.format not in ("JPEG", "MPO"):
            to_8_bit(image)
            return
        _load_eighth(image)
        if _lacks_pixels(image, stream):
            raise DataError("its pixels end early")

    return _why_not(stream, decode)


def _load_eighth(image: Image.Image) -> None:
    image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
    image.load()


def _lacks_pixels(image: Image.Image, stream: BinaryIO) -> bool:
    """Whether a JPEG file was cut amid its pixels and has an end marker all the same, as a repaired file or one of a camera may.

    The decoder fills up what is missing with grey, and Pillow swallows its warning. Where the last pixel is of that grey, more data
    is put before the end marker: if pixels were missing, it changes them. Of progressive files, whose last part only sharpens
    what is there, nothing is found in this way.
    """
    corner = image.getpixel((image.width - 1, image.height - 1))
    if not _GREY.issuperset(corner if isinstance(corner, tuple) else (corner,)):
        return False
    stream.seek(0)
    content = stream.read()
    end = content.rfind(_ENDINGS["JPEG"])
    with open_image(io.BytesIO(content[:end] + _MORE + content[end:])) as longer:
        _load_eighth(longer)
        return longer.tobytes() != image.tobytes()


def _why_not(stream: BinaryIO, look: Callable[[Image.Image], None]) -> str | None:
    """Return why an image cannot be opened or looked at, or None."""
    try:
        with open_image(stream) as image:
            look(image)
    except (MemoryError, RemoteError):
        raise  # which say nothing of the image
    except Exception as error:  # damaged files make Pillow's readers raise errors of every kind
        return _reason(error)
    return None


def find_damage_of_file(path: Path) -> str | None:
    """Return why a file cannot be decoded, as `find_damage`."""
    try:
        with _open_file(path) as stream:
            return find_damage(stream)
    except (OSError, DataError) as error:
        return _reason(error)


def _ends_oddly(image: Image.Image, stream: BinaryIO) -> bool:
    if image.format not in _ENDINGS:
        return False
    position = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _ENDING_BYTES))
    ending = stream.read()
    stream.seek(position)
    return _ENDINGS[image.format] not in ending


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path, which stands before it
    return printable(first_line(error))
