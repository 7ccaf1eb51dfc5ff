"""Single images as evaluation sees them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.data import transforms
from convnext_deploy.data.datasets import FolderImages, ImageSet
from convnext_deploy.data.decoding import printable
from convnext_deploy.data.image_sets import TaughtImages
from convnext_deploy.data.shards import ShardImages
from convnext_deploy.errors import DataError


@dataclass(frozen=True)
class EvaluationItems:
    """Images through the evaluation transform, `(S, S, C)` uint8."""

    images: ImageSet
    preprocess: Preprocess

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return *self.preprocess.sides, len(self.preprocess.mean)

    def load(self, index: int, epoch: int) -> NDArray[np.uint8] | DataError:
        """Return an image, which is the same in each epoch, or why it cannot be read."""
        try:
            return transforms.evaluation_transform(self.images.load(index), self.preprocess)
        except DataError as error:
            return error

    def name(self, index: int) -> str:
        """Return the path of an image, where it has one."""
        return name_image(self.images, index)


def name_image(images: ImageSet, index: int) -> str:
    """Return the path of an image, or its number where it has none."""
    if isinstance(images, TaughtImages):
        return name_image(*images.part(index))
    if isinstance(images, FolderImages | ShardImages):
        return printable(images.paths[index] if isinstance(images, FolderImages) else images.place(index))
    return f"image {index}"
