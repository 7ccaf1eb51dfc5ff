"""Batches for calibration and validation: each image once, in order; small ones are decoded in the first pass alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.data import transforms
from convnext_deploy.data.datasets import ImageSet
from convnext_deploy.data.items import EvaluationItems
from convnext_deploy.data.kept_pixels import KeptRows
from convnext_deploy.data.worker_process import Chunk
from convnext_deploy.data.workers import Loader


@dataclass(frozen=True)
class EvaluationBatches:
    """Images through the evaluation transform, each exactly once and in order.

    `as_pixels`: as they are, for a runner, which knows what its artifact takes; otherwise normalized, for a network.
    `keeps_workers`: the processes wait for the next pass, until `close`; otherwise each pass starts its own.
    """

    images: ImageSet
    preprocess: Preprocess
    batch_size: int
    workers: int = 0
    indices: Sequence[int] | None = None
    as_pixels: bool = False
    keeps_workers: bool = False
    _loader: Loader = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Start nothing yet."""
        loader = Loader(EvaluationItems(self.images, self.preprocess), self.batch_size, self.workers)
        object.__setattr__(self, "_loader", loader)

    def __len__(self) -> int:
        return -(-len(self.images if self.indices is None else self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images `(N, C, S, S)` float32, or pixels `(N, S, S, C)` uint8, and labels `(N,)` int64."""
        order = np.asarray(range(len(self.images)) if self.indices is None else self.indices, np.int64)
        chunks = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        try:
            for pixels, chunk in zip(self._pixels(chunks), chunks, strict=True):
                images = pixels if self.as_pixels else transforms.normalize(pixels, self.preprocess)
                yield images, torch.from_numpy(self.images.labels[chunk])
        finally:
            if not self.keeps_workers:
                self.close()

    def _pixels(self, chunks: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Yield the images of each chunk, those of small ones that an earlier pass has kept from memory."""
        kept = getattr(self.images, "kept", None)  # which parts of sets do not have
        rows: KeptRows | None = None if kept is None else kept.rows(len(self.images), self.preprocess)
        if rows is None:
            yield from load_chunks(self._loader, chunks)
            return
        missing = [not rows.have(chunk) for chunk in chunks]
        wanted = list(itertools.compress(chunks, missing))
        loaded = load_chunks(self._loader, wanted) if wanted else iter(())
        for chunk, is_missing in zip(chunks, missing, strict=True):
            if is_missing:
                pixels = next(loaded)
                rows.put(chunk, pixels.numpy())
                yield pixels
            else:
                yield torch.from_numpy(rows.pixels[chunk])
        for _ in loaded:  # so that the loader ends in order
            pass

    def close(self) -> None:
        """End the processes that load images."""
        self._loader.close()


def load_chunks(loader: Loader, chunks: Sequence[Chunk], epoch: int = 0) -> Iterator[Tensor]:
    """Yield `(N, S, S, C)` uint8 batches. Raises: DataError: of the first unreadable image in a batch."""
    for pixels, errors in loader.load(chunks, epoch):
        if errors:
            raise errors[min(errors)]
        yield torch.from_numpy(pixels)
