"""Thumbnails of images, as data URIs that a page can hold."""

import base64
import io
from collections.abc import Collection

from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DataError
from convnext_deploy.reports.record import StageRow

SIDE = 96  # pixels
MOST = 120  # in a report, which holds them all: of photos half a megabyte, of noise one
_TINY = 48  # up to this side a lossless file is small too


def make_thumbnails(data: Data | None, row: StageRow, known: Collection[str] = ()) -> dict[str, str]:
    """Return the images in `Accuracy.flips` and `.errors` as data URIs, by their index in decimal digits.

    The longer side has at most 96 pixels. With `known` there are at most 120.

    Args:
        data: whose validation images they are; None: there are no pictures.
        row: whose images are wanted.
        known: indices that are there already.
    """
    made: dict[str, str] = {}
    if data is None or row.accuracy is None:
        return made
    wanted = [error.index for error in row.accuracy.errors] + [flip.index for flip in row.accuracy.flips]
    for index in dict.fromkeys(wanted):
        if str(index) in known or len(known) + len(made) >= MOST:
            continue
        try:
            image = data.validation.load(index).convert("RGB")
        except (DataError, OSError):  # the answer counts, and was given; a picture of it is no reason to fail
            continue
        is_tiny = max(image.size) <= _TINY
        image.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        image.save(stream, "PNG" if is_tiny else "JPEG", **({"optimize": True} if is_tiny else {"quality": 75}))
        kind = "png" if is_tiny else "jpeg"
        made[str(index)] = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return made
