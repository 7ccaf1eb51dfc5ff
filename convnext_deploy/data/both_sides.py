"""What images are called, and which of those that judge are among the training images as well."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convnext_deploy.data.contents import Contents, names_below
from convnext_deploy.data.image_sets import FolderImages, ImageSet
from convnext_deploy.data.shards import ShardImages, find_repeated_samples
from convnext_deploy.data.splits import find_repeated_files


def name_images(images: ImageSet, root: Path) -> tuple[str, ...]:
    """Return what images are called below a folder; those without files have no names."""
    if isinstance(images, FolderImages):
        return tuple(map(os.fsdecode, images.files.names_below(root)))
    if isinstance(images, ShardImages):
        return tuple(names_below(root, map(images.place, range(len(images)))))
    return ()


def count_unread(judging: Sequence[ImageSet], train: ImageSet, contents: Contents) -> int:
    """Return how many training images would be read to tell whether they are among others: those of equal size, if not known."""
    sizes = [images.files.status["size"] for images in judging if isinstance(images, FolderImages)]
    if not sizes or not isinstance(train, FolderImages):
        return 0
    return contents.count_unread(
        train.files.take(np.flatnonzero(np.isin(train.files.status["size"], np.concatenate(sizes))))
    )


def find_repeated_images(images: ImageSet, train: ImageSet, contents: Contents) -> tuple[Path, ...]:
    """Return those images that are among the training images as well, whatever they are called."""
    if isinstance(images, FolderImages) and isinstance(train, FolderImages):
        return tuple(images.files.take(find_repeated_files(images.files, train.files, contents)))
    if isinstance(images, ShardImages) and isinstance(train, ShardImages):
        return find_repeated_samples(images, train)
    return ()
