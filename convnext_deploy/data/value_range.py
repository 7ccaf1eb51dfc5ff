"""Say when images use only the lowest part of the values that their files can hold, as 12-bit values in a 16-bit PNG do."""

import io
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from convnext_deploy.data.pixels import open_image, quiet, to_8_bit, top_of_grey
from convnext_deploy.errors import DataError

_LOOKED_AT = 32  # images, spread over all
_FAR_BELOW = 1 / 4  # of the range: 14 bits in 16
_DEEP_COLOUR = ";16"  # in the name of how Pillow unpacks colours of 16 bits, of which it takes the upper 8
_LOSSY = ("JPEG", "MPO")  # photographs; their blocks and tables are no container of other values


class Encoded(Protocol):
    """Images as their files hold them."""

    def __len__(self) -> int:
        """Return how many there are."""

    def content(self, index: int) -> bytes:
        """Return the encoded bytes of an image."""


def describe_dark(images: Encoded) -> str | None:
    """Say that the largest value is far below what the type can hold, or 0, and what is done then; None if it is not.

    Looks at few images, and at one alone where that uses its range.
    """
    found = list(_largest_values(images))
    if not found or any(value > _FAR_BELOW * top for value, top in found):
        return None
    value, top = max(found, key=lambda pair: pair[0] / pair[1])
    if value == 0:
        return (
            f"all {len(found)} images that were looked at are black, and no network can tell them apart; if they should not be, "
            "look at how they were written"
        )
    white, grey = _white(value), round(255 * value / top)
    return (
        f"the largest value in {len(found)} images that were looked at is {value:,g} of {top:,g}: they are read as they are, "
        f"black to {grey} of 255, and not stretched; if {white:,g} is meant to be white, multiply them by {top / white:.4g} first"
    )


def _white(value: float) -> float:
    """Return the largest value of so many bits."""
    return value if value <= 1 else float(2 ** int(value).bit_length() - 1)


def _largest_values(images: Encoded) -> Iterator[tuple[float, float]]:
    """Yield the largest value of an image and the largest that its type holds, until one uses its range."""
    places = np.unique(np.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).round().astype(int)).tolist()
    for place in places:
        try:
            with quiet(), open_image(io.BytesIO(images.content(place))) as image:
                if image.format in _LOSSY:
                    return
                found = _largest_value(image)
        except (DataError, OSError, ValueError, SyntaxError):  # what cannot be read is told elsewhere
            continue
        if not found[0] >= 0:  # NaN or negative, which is refused elsewhere
            continue
        yield found
        if found[0] > _FAR_BELOW * found[1]:
            return


def _largest_value(image: Image.Image) -> tuple[float, float]:
    if image.mode == "F" or image.mode.startswith("I"):
        white_is_zero = getattr(image, "tag_v2", {}).get(ExifTag.PhotometricInterpretation) == 0
        return (top_of_grey(image) if white_is_zero else float(np.asarray(image).max())), top_of_grey(image)
    arguments = [tile[3] for tile in getattr(image, "tile", ()) if tile[3]]
    ways = [found if isinstance(found, str) else found[0] for found in arguments]
    is_deep = any(_DEEP_COLOUR in str(way) for way in ways)
    value = float(np.asarray(to_8_bit(image)).max())
    return (value * 257, 65535.0) if is_deep else (value, 255.0)
