"""Read image files in batches for a network; some of them may not be images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.data.datasets import FolderImages
from convnext_deploy.data.loaders import EvaluationItems
from convnext_deploy.data.transforms import normalize
from convnext_deploy.errors import DataError


@dataclass(frozen=True)
class FileBatch:
    """Some files in their order.

    `images` are those of them that could be read, normalized, `(N, C, S, S)` float32; `errors` has for each of `paths` why it could
    not be read, or None.
    """

    paths: tuple[Path, ...]
    images: Tensor
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
        count = len(self.paths)
        order = list(range(count))
        chunks = [order[start : start + self.batch_size] for start in range(0, count, self.batch_size)]
        images = FolderImages(tuple(self.paths), np.zeros(count, np.int64))
        items = EvaluationItems(images, self.preprocess)
        # a generator of its own, or the loader would draw from that of the caller
        loader = DataLoader(
            items, batch_sampler=chunks, num_workers=self.workers, collate_fn=list, generator=torch.Generator()
        )
        for chunk, found in zip(chunks, loader, strict=True):
            yield self._batch(chunk, found)

    def _batch(self, chunk: list[int], found: list[NDArray[np.uint8] | DataError]) -> FileBatch:
        side, channels = self.preprocess.image_size, len(self.preprocess.mean)
        readable = [item for item in found if not isinstance(item, DataError)]
        pixels = np.stack(readable) if readable else np.zeros((0, side, side, channels), np.uint8)
        errors = tuple(item if isinstance(item, DataError) else None for item in found)
        paths = tuple(self.paths[index] for index in chunk)
        return FileBatch(paths, normalize(torch.from_numpy(pixels), self.preprocess), errors)
