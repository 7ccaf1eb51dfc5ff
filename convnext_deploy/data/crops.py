"""Cut a box out of an image file. Of a large JPEG file only as many pixels are decoded as the result needs."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.data.decoding import Encoded, opened
from convnext_deploy.data.image_sets import ImageSet
from convnext_deploy.data.pixels import as_array, read_orientation, to_channels
from convnext_deploy.data.transforms import crop_image, whole_pixels

Draw = Callable[[int, int], tuple[NDArray[np.float64], bool]]
"""The upright height and width of an image → a box in it (top, left, height, width in pixels), and whether to mirror it."""

_FACTORS = (8, 4, 2)  # by which libjpeg decodes an image smaller
# EXIF orientations in which the sides are exchanged, and in which the upright image begins on the left, or at the top, with the
# last of the stored pixels
_EXCHANGED, _LEFT_IS_LAST, _TOP_IS_LAST = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


def load_crop(images: ImageSet, index: int, channels: int, draw: Draw, size: ImageSize) -> NDArray[np.uint8]:
    """Decode an image, cut a box out of it with bicubic antialiased resizing to a size, and mirror it where that was drawn.

    The box is drawn for the full image. A JPEG file is decoded at half, a quarter or an eighth of its sides where the box then
    still has at least as many rows and columns as the result; its pixels are means, made within the inverse cosine transform.

    Args:
        images: the set.
        index: of the image.
        channels: 1 (grey) or 3 (RGB).
        draw: the box and the mirroring.
        size: of the result.

    Returns: `(rows, columns, channels)` uint8.
    Raises: DataError: naming the file, if it cannot be read.
    """
    encoded = images.encoded(index)
    if encoded is None:
        image = to_channels(images.load(index), channels)
        return crop_image(image, *draw(image.height, image.width), size)
    image, box, flip = _decode(encoded, channels, draw, size)
    return crop_image(image, box, flip, size) if isinstance(box, np.ndarray) else _resize(image, box, flip, size)


def reduction(height: int, width: int, size: ImageSize) -> int:
    """Return the largest factor, 8, 4, 2 or 1, by which a box may shrink and still have the rows and columns of `size`."""
    rows, columns = sides_of(size)
    return next((factor for factor in _FACTORS if height >= factor * rows and width >= factor * columns), 1)


def _decode(
    encoded: Encoded, channels: int, draw: Draw, size: ImageSize
) -> tuple[Image.Image, NDArray[np.float64] | tuple[float, float, float, float], bool]:
    """Return an image with the box as it was drawn, or at reduced size with left, top, right and bottom of the box in it."""
    with opened(encoded) as image:
        if image.format not in ("JPEG", "MPO"):
            pixels = to_channels(image, channels)
            return pixels, *draw(pixels.height, pixels.width)
        orientation = read_orientation(image)
        width, height = image.size[::-1] if orientation in _EXCHANGED else image.size
        box, flip = draw(height, width)
        top, left, rows, columns = whole_pixels(box)
        factor = reduction(rows, columns, size)
        if factor == 1:
            return to_channels(image, channels), box, flip
        image.draft(None, (image.width // factor, image.height // factor))
        pixels = to_channels(image, channels)
    # The last pixels may stand for fewer than `factor`, and then come first.
    x = left / factor + (pixels.width - width / factor if orientation in _LEFT_IS_LAST else 0.0)
    y = top / factor + (pixels.height - height / factor if orientation in _TOP_IS_LAST else 0.0)
    return pixels, (x, y, min(x + columns / factor, pixels.width), min(y + rows / factor, pixels.height)), flip


def _resize(
    image: Image.Image, box: tuple[float, float, float, float], flip: bool, size: ImageSize
) -> NDArray[np.uint8]:
    """Cut a box out that need not begin or end between two pixels."""
    rows, columns = sides_of(size)
    left, top, right, bottom = box
    first = math.floor(left), math.floor(top)
    image = image.crop((*first, math.ceil(right), math.ceil(bottom)))  # as at full size, nothing else is seen
    inside = (left - first[0], top - first[1], right - first[0], bottom - first[1])
    pixels = as_array(image.resize((columns, rows), Image.Resampling.BICUBIC, box=inside))
    return pixels[:, ::-1] if flip else pixels
