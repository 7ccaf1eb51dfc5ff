"""The same images under other labels."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.image_sets import ArrayImages, FolderImages, ImageSet
from convnext_deploy.data.shards import ShardImages
from convnext_deploy.errors import DataError


def one_hot(images: ImageSet, classes: int) -> ImageSet:
    """Return images of one class each with a column for each class, `(N, classes)`. Raises: DataError: if they are of shards."""
    if isinstance(images, FolderImages | ArrayImages):
        return replace(images, labels=np.eye(classes, dtype=np.int64)[images.labels])
    raise DataError("shards have one class an image; labels of several are read from a file beside image files.")


def renumber(images: ImageSet, numbers: NDArray[np.int64]) -> ImageSet:
    """Return images whose labels are `numbers[label]`."""
    if isinstance(images, ShardImages):
        return replace(images, numbers=numbers if images.numbers is None else numbers[images.numbers])
    if isinstance(images, FolderImages | ArrayImages):
        if images.labels.ndim > 1:
            return replace(images, labels=images.labels[:, np.argsort(numbers)])
        return replace(images, labels=numbers[images.labels])
    raise TypeError(f"{type(images).__name__} cannot be numbered anew")
