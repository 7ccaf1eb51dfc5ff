"""From an image to the pixels that a network is shown: upright, 8 bits per channel, resized, cropped.

Bundles carry this file as it is, so that a device prepares images as they were prepared here: it takes nothing but Python 3.8,
numpy and Pillow 8, and imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

# What photographs come in, and how such files are called; the content decides. Pillow's other readers are left out: EPS runs
# Ghostscript.
FORMATS = {
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
IMAGE_EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # tags of TIFF and EXIF
_WAYS: Any = getattr(Image, "Transpose", Image)  # Pillow before 9.1 has the constants in the module
_FILTERS: Any = getattr(Image, "Resampling", Image)
# EXIF orientation: what brings the image upright.
_UPRIGHT = {
    2: _WAYS.FLIP_LEFT_RIGHT,
    3: _WAYS.ROTATE_180,
    4: _WAYS.FLIP_TOP_BOTTOM,
    5: _WAYS.TRANSPOSE,
    6: _WAYS.ROTATE_270,
    7: _WAYS.TRANSVERSE,
    8: _WAYS.ROTATE_90,
}

SWITCHING = threading.Lock()
"""Held while `quiet` changes the filters of warnings. Who forks this process holds it too: the fork could never get it else."""
_SILENCE = contextlib.ExitStack()
_inside: list[None] = []
"""One for each block of `quiet` that is open, in any thread."""


def open_image(stream: BinaryIO) -> Image.Image:
    """Open an image by its header. To be called within `quiet`. Raises: Exception: of any kind, if it is none."""
    if not stream.read(1):
        raise ValueError("an empty file")
    stream.seek(0)
    return Image.open(stream, formats=readable_formats())


@functools.lru_cache(maxsize=None)  # noqa: UP033  (Python 3.8)
def readable_formats() -> tuple[str, ...]:
    """Return which of `FORMATS` this Pillow reads; older ones read no AVIF."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings of odd metadata and of images of more than 89 megapixels; those of twice that are refused.

    All threads share the filters of warnings. So the first block silences them, and the last one that was open at the same time, in
    whatever thread, puts back what was before.
    """
    with SWITCHING:
        if not _inside:
            _SILENCE.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _inside.append(None)
    try:
        yield
    finally:
        with SWITCHING:
            _inside.pop()
            if not _inside:
                _SILENCE.close()


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
        ValueError: if grey values are outside of the range above; the text does not name the file.
        Exception: of any kind, if the file behind the image is damaged.
    """
    image.load()
    orientation = read_orientation(image)
    pixels = _to_grey_or_rgb(image)
    if orientation not in _UPRIGHT:
        return pixels
    pixels = pixels.transpose(_UPRIGHT[orientation])
    pixels.info.clear()  # Pillow copies the orientation, which no longer holds
    return pixels


def read_orientation(image: Image.Image) -> int:
    """Return how a camera says that the stored pixels lie (EXIF 2.32, tag 274), 1 to 8; 1: upright."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata, on which Pillow fails in many ways, takes nothing from the pixels
        return 1


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale_grey(image))
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
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
        raise ValueError(
            f"its grey values run from {low:g} to {high:g}, expected 0 to {top}; convert it to 8 or 16 bits"
        )
    grey = np.rint(values * (255 / top)).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # white is zero; Pillow sees to it for 8 bits and fewer
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return grey


def top_of_grey(image: Image.Image) -> float:
    """Return the value of white in an image of integers or floats."""
    # Pillow keeps the values of 12-bit files as they are, but scales those of PPM files to 16 bits
    is_12_bit = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,)  # only TIFF files have such tags
    return 1 if image.mode == "F" else 4095 if is_12_bit else 65535


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, _lab_transform())
    assert converted is not None  # None only when it works in place
    return converted


@functools.lru_cache(maxsize=None)  # noqa: UP033  (Python 3.8)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert to upright 8-bit grey (1 channel, ITU-R 601 luma) or RGB (3)."""
    image = to_8_bit(image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def as_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a grey or RGB image of 8 bits, `(H, W, C)` uint8."""
    array = np.asarray(image, np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def evaluation_pixels(image: Image.Image, preprocess: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Resize the shorter side (or both, when squashing) and crop the centre: `(height, width, C)` uint8.

    For images that are not square the ratio is kept and both sides are covered, as by timm's `ResizeKeepRatio`. Resizing and
    cropping are torchvision's of Pillow images.

    Args:
        image: of any mode.
        preprocess: the fields of the evaluation transform, as `bundle.json` has them.
    """
    image = to_channels(image, len(preprocess["mean"]))
    resize, squash = preprocess["resize_size"], preprocess["crop_mode"] == "squash"
    height, width = _sides(resize)
    if squash:
        size = (width, height)
    elif isinstance(resize, int):
        short, long = min(image.size), max(image.size)
        scaled = int(resize * long / short)
        size = (resize, scaled) if image.width <= image.height else (scaled, resize)
    else:
        scale = max(height / image.height, width / image.width)
        size = (round(image.width * scale), round(image.height * scale))
    if image.size != size:
        image = image.resize(size, getattr(_FILTERS, preprocess["interpolation"].upper()))
    return _crop_centre(as_array(image), *_sides(preprocess["image_size"]))


def _sides(size: Any) -> tuple[int, int]:
    """Return height and width of a size: one side of a square, or both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _crop_centre(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Cut the centre out of `(H, W, C)`; where an image is smaller, black is laid around it."""
    missing = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    if any(missing):
        around = [(lacks // 2, (lacks + 1) // 2) for lacks in missing]
        pixels = np.pad(pixels, [*around, (0, 0)])
    top, left = (round((has - takes) / 2) for has, takes in zip(pixels.shape, (height, width)))  # noqa: B905  (Python 3.8)
    return pixels[top : top + height, left : left + width]
