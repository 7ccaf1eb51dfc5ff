"""Read image files in batches for a network; some of them may not be images."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.data.datasets import FolderImages
from convnext_deploy.data.loaders import EvaluationItems
from convnext_deploy.errors import DataError


@dataclass(frozen=True)
class FileBatch:
    """Some files in their order.

    `pixels` are those of them that could be read, `(N, S, S, C)` uint8; `errors` has for each of `paths` why it could not be read,
    or None.
    """

    paths: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    errors: tuple[DataError | None, ...]


@dataclass(frozen=True)
class FileBatches:
    """Files through the evaluation transform, in their order, decoded as they are needed and not kept."""

    paths: Sequence[Path]
    preprocess: Preprocess
    batch_size: int
    workers: int = 0

    def __iter__(self) -> Iterator[FileBatch]:
        """Yield batches of `batch_size` files; only the last one may have fewer."""
        images = FolderImages(tuple(self.paths), np.zeros(len(self.paths), np.int64))
        loader = DataLoader(
            EvaluationItems(images, self.preprocess),
            self.batch_size,
            sampler=range(len(self.paths)),  # the items do not know how many they are
            num_workers=self.workers,
            collate_fn=list,
            generator=torch.Generator(),  # its own, or the loader would draw from that of the caller
        )
        paths = iter(self.paths)
        for found in loader:
            yield self._batch(tuple(itertools.islice(paths, len(found))), found)

    def _batch(self, paths: tuple[Path, ...], found: list[NDArray[np.uint8] | DataError]) -> FileBatch:
        side, channels = self.preprocess.image_size, len(self.preprocess.mean)
        readable = [item for item in found if not isinstance(item, DataError)]
        pixels = np.stack(readable) if readable else np.zeros((0, side, side, channels), np.uint8)
        errors = tuple(item if isinstance(item, DataError) else None for item in found)
        return FileBatch(paths, pixels, errors)
