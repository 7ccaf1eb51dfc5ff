"""Thumbnails of images, as data URIs that a page can hold."""

import base64
import io
from collections.abc import Collection

from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DataError
from convnext_deploy.reports.record import StageRow

SIDE = 96  # pixels
_TINY = 48  # up to this side a lossless file is small too


def make_thumbnails(data: Data | None, row: StageRow, known: Collection[str] = ()) -> dict[str, str]:
    """Return the images in `Accuracy.flips` as data URIs, by their index in decimal digits; the longer side has at most 96 pixels.

    Args:
        data: whose validation images they are; None: there are no pictures.
        row: whose flipped images are wanted.
        known: indices that are there already.
    """
    made: dict[str, str] = {}
    for flip in row.accuracy.flips if data is not None and row.accuracy is not None else ():
        if str(flip.index) in known:
            continue
        assert data is not None
        try:
            image = data.validation.load(flip.index).convert("RGB")
        except (DataError, OSError):  # the answer counts, and was given; a picture of it is no reason to fail
            continue
        is_tiny = max(image.size) <= _TINY
        image.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        image.save(stream, "PNG" if is_tiny else "JPEG", **({"optimize": True} if is_tiny else {"quality": 82}))
        kind = "png" if is_tiny else "jpeg"
        made[str(flip.index)] = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return made
