"""Decode image files to upright 8-bit pixels, and check that a file is a readable image."""

import contextlib
import functools
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag

from convnext_deploy.errors import DataError, first_line
from convnext_deploy.errors import printable as printable

Item = TypeVar("Item")
Result = TypeVar("Result")

# What photographs come in, and how such files are called; the content decides. Pillow's other readers are left out: EPS runs
# Ghostscript.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
IMAGE_EXTENSIONS = tuple(extension for extensions in _FORMATS.values() for extension in extensions)
# Where these end; a file that does not has been cut, or has something appended to it.
_ENDINGS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_ENDING_BYTES = 64
_CHUNK = 256  # files per task
_THREADS = 8  # they wait for the disk together; on one that answers at once they gain nothing
# EXIF orientation: what brings the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_8_bit(image: Image.Image) -> Image.Image:
    """Return the first frame of an image as a viewer shows it: upright, 8 bits per channel, grey (`L`) or `RGB`.

    - EXIF orientation is applied.
    - 16-bit grey is scaled by 255/65535 and rounded, 12-bit TIFF by 255/4095, float from 0..1.
    - Transparent parts become white: what lies beneath them is arbitrary, often black, and white is the page for which
      cut-out pictures are made.
    - CMYK is converted without regard to inks, in JPEG files with the inverted values that Adobe writes.
    - CIELAB is taken to be relative to D50, as in ICC profiles.
    - Embedded ICC profiles are ignored, as by torchvision and timm, with which published weights were trained.

    Raises:
        DataError: if grey values are outside of the range above; the text does not name the file.
        Exception: of any kind, if the file behind the image is damaged.
    """
    image.load()
    orientation = _orientation(image)
    pixels = _to_grey_or_rgb(image)
    if orientation not in _UPRIGHT:
        return pixels
    pixels = pixels.transpose(_UPRIGHT[orientation])
    pixels.info.clear()  # Pillow copies the orientation, which no longer holds
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # damaged metadata, on which Pillow fails in many ways, takes nothing from the pixels
        return 1


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale_grey(image))
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("LA" if grey else "RGBA")
        colour = image.convert("L" if grey else "RGB")
        return Image.composite(colour, Image.new(colour.mode, colour.size, "white"), image.getchannel("A"))
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _scale_grey(image: Image.Image) -> NDArray[np.uint8]:
    """Scale integers or floats to `(H, W)` uint8."""
    values, top = np.asarray(image), top_of_grey(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):
        raise DataError(
            f"its grey values run from {low:g} to {high:g}, expected 0 to {top}; convert it to 8 or 16 bits"
        )
    grey = np.rint(values * (255 / top)).astype(np.uint8)
    if (
        getattr(image, "tag_v2", {}).get(ExifTag.PhotometricInterpretation) == 0
    ):  # white is zero; Pillow sees to it for 8 bits and fewer
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return grey


def top_of_grey(image: Image.Image) -> float:
    """Return the value of white in an image of integers or floats."""
    # Pillow keeps the values of 12-bit files as they are, but scales those of PPM files to 16 bits
    is_12_bit = getattr(image, "tag_v2", {}).get(ExifTag.BitsPerSample) == (12,)  # only TIFF files have such tags
    return 1 if image.mode == "F" else 4095 if is_12_bit else 65535


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, _lab_transform())
    assert converted is not None  # None only when it works in place
    return converted


@functools.cache
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def read_image(path: Path) -> Image.Image:
    """Decode an image file to upright 8-bit grey or RGB, as `to_8_bit` does.

    Raises: DataError: naming the file, if it cannot be read.
    """
    # A stream, because Pillow maps files that it opens itself into memory, and then garbles rotated TIFF images.
    return decode_image(path, lambda: _open_file(path))


def decode_image(name: object, open_stream: Callable[[], BinaryIO]) -> Image.Image:
    """Decode the image file that `open_stream` opens, as `to_8_bit` does.

    Raises: DataError: with `name`, if it cannot be read.
    """
    try:
        with quiet(), open_stream() as stream, open_image(stream) as image:
            return to_8_bit(image)
    except MemoryError:
        raise  # which says nothing of the image
    except Exception as error:  # damaged files make Pillow's readers raise errors of every kind
        raise DataError(
            f"{printable(name)} cannot be read as an image ({_reason(error)}); repair or remove it, or leave it out with "
            "--skip-unreadable."
        ) from None


def find_unreadable(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the files that are not readable images, in the order given, each with the reason.

    Opens every header, and decodes in full only JPEG and PNG files that do not end as they should. Damage amid the pixels
    is found by `find_damage`, which decodes. Costs about 25 µs per file on one core when the disk answers at once.
    """
    with quiet():
        reasons = map_files(_find_defect_of_file, paths)
    return [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason is not None]


def map_files(function: Callable[[Item], Result], items: Sequence[Item], chunk: int = _CHUNK) -> list[Result]:
    """Call a function that reads a file for each of `items`, `chunk` to a task, in threads; the results are in order."""

    def work(start: int) -> list[Result]:
        return [function(item) for item in items[start : start + chunk]]

    with ThreadPoolExecutor(_THREADS) as pool:
        return [result for part in pool.map(work, range(0, len(items), chunk)) for result in part]


def _find_defect_of_file(path: Path) -> str | None:
    try:
        with _open_file(path) as stream:
            return find_defect(stream)
    except (OSError, DataError) as error:
        return _reason(error)


def _open_file(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError("not a regular file")  # opening a pipe would wait for ever
    return path.open("rb")


def find_defect(stream: BinaryIO) -> str | None:
    """Return why an image file cannot be read, or None, without decoding it in full where possible. To be called within `quiet`."""

    def look(image: Image.Image) -> None:
        # integers of 32 bits and floats may be out of range
        if image.mode in ("I", "F") or _ends_oddly(image, stream):
            to_8_bit(image)

    return _why_not(stream, look)


def find_damage(stream: BinaryIO) -> str | None:
    """Return why an image file cannot be decoded to its last pixel, or None. To be called within `quiet`.

    JPEG files are decoded at an eighth of their size, which reads all of the file in less than half of the time.
    """

    def decode(image: Image.Image) -> None:
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
        else:
            to_8_bit(image)

    return _why_not(stream, decode)


def _why_not(stream: BinaryIO, look: Callable[[Image.Image], None]) -> str | None:
    """Return why an image cannot be opened or looked at, or None."""
    try:
        with open_image(stream) as image:
            look(image)
    except MemoryError:
        raise  # which says nothing of the image
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


def open_image(stream: BinaryIO) -> Image.Image:
    """Open an image by its header. To be called within `quiet`. Raises: Exception: of any kind, if it is none."""
    if not stream.read(1):
        raise DataError("an empty file")
    stream.seek(0)
    return Image.open(stream, formats=_formats())


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


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # older Pillow reads no AVIF


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings of odd metadata and of images of more than 89 megapixels; those of twice that are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
