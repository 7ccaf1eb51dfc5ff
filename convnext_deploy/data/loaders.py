"""Batches: augmented for training, deterministic for calibration and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convnext_deploy.data import transforms
from convnext_deploy.data.augmentation import (
    change_colors_and_shapes,
    change_image,
    crop_and_flip,
    draw_erasures,
    erase,
)
from convnext_deploy.data.mixing import mix
from convnext_deploy.data.sources import ImageSet
from convnext_deploy.errors import DataError
from convnext_deploy.spec import Preprocess
from convnext_deploy.stage_config import Augmentation

_CACHED_SIDE = 96  # pixels; larger images are decoded again in every epoch
_CACHED_BYTES = 2 << 30
_ORDER, _BATCH, _IMAGE, _FINISH = 1, 2, 3, 4  # streams of random numbers


@dataclass(frozen=True)
class EvaluationBatches:
    """Images through the evaluation transform, each exactly once and in order."""

    images: ImageSet
    preprocess: Preprocess
    batch_size: int
    workers: int = 0
    indices: Sequence[int] | None = None

    def __len__(self) -> int:
        count = len(self.images if self.indices is None else self.indices)
        return -(-count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images `(N, C, S, S)` float32 and labels `(N,)` int64."""
        order = list(range(len(self.images)) if self.indices is None else self.indices)
        chunks = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for pixels, chunk in zip(
            _load(_Evaluation(self.images, self.preprocess), chunks, self.workers), chunks, strict=True
        ):
            yield transforms.normalize(pixels, self.preprocess), torch.from_numpy(self.images.labels[chunk])


class TrainingBatches:
    """Augmented batches; what batch `k` of epoch `e` holds depends on the seed, `e` and `k` alone, not on workers.

    Small images of one size (up to 96 pixels) are decoded once, kept as uint8 and augmented in batches on the device; large ones
    are decoded, cropped and changed by the loader's workers. The last incomplete batch of an epoch is dropped.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocess: Preprocess,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        num_classes: int,
        workers: int = 0,
        device: str = "cpu",
    ) -> None:
        """Decode small images.

        Args:
            images: of the training set.
            preprocess: normalization and size.
            batch_size: at most the number of images.
            seed: of order and augmentation.
            augmentation: the training transforms.
            num_classes: of the network.
            workers: processes that load large images; 0: this one.
            device: where batches are augmented and yielded.

        Raises: DataError: if an image cannot be read.
        """
        self.images, self.preprocess, self.seed, self.workers, self.device = images, preprocess, seed, workers, device
        self.batch_size = min(batch_size, len(images))
        self.augmentation, self.num_classes = augmentation, num_classes
        self._cache = _decode_small(images, len(preprocess.mean), device)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from batch `start` on, without computing those before.

        Yields: normalized images `(N, C, S, S)` float32, channels-last in memory, and labels: `(N,)` int64, or where the
        augmentation mixes `(N, num_classes)` float32 probabilities. Both are on the device.
        """
        order = _generator(_ORDER, self.seed, epoch).permutation(len(self.images))[: len(self) * self.batch_size]
        chunks = order.reshape(len(self), self.batch_size)[start:]
        for batch, (pixels, chunk) in enumerate(zip(self._pixels(chunks, epoch, start), chunks, strict=True), start):
            labels = torch.from_numpy(self.images.labels[chunk]).to(self.device)
            images = transforms.normalize(pixels.to(self.device), self.preprocess)
            yield self._finish(images, labels, _generator(_FINISH, self.seed, epoch, batch))

    def _finish(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Erase and mix, which come after normalization."""
        if self.augmentation.random_erasing_probability:
            boxes = draw_erasures(
                rng, len(images), images.shape[2], images.shape[3], self.augmentation.random_erasing_probability
            )
            images = erase(images, boxes, rng)
        if self.augmentation.is_mixing:
            return mix(images, labels, self.num_classes, self.augmentation, rng)
        return images, labels

    def _pixels(self, chunks: NDArray[np.int64], epoch: int, start: int) -> Iterator[Tensor]:
        """Yield the images of each chunk as `(N, S, S, C)` uint8."""
        size, wanted = self.preprocess.image_size, self.augmentation
        if self._cache is None:
            yield from _load(
                _Training(self.images, self.preprocess, wanted, self.seed, epoch), chunks.tolist(), self.workers
            )
            return
        _, height, width, _ = self._cache.shape
        for batch, chunk in enumerate(chunks, start):
            rng = _generator(_BATCH, self.seed, epoch, batch)
            boxes = transforms.sample_crops(rng, len(chunk), height, width, wanted.crop_scale_min)
            flips = rng.uniform(size=len(chunk)) < wanted.flip_probability
            chosen = self._cache[torch.from_numpy(chunk).to(self._cache.device)]
            yield change_colors_and_shapes(crop_and_flip(chosen, boxes, flips, size), wanted, rng)


def _generator(stream: int, *parts: int) -> np.random.Generator:
    # The stream comes first and is not 0: NumPy pads seeds with zeros, so that (seed, epoch) and (seed, epoch, 0) are the same.
    return np.random.default_rng((stream, *parts))


@dataclass(frozen=True)
class _Evaluation(Dataset[Any]):
    images: ImageSet
    preprocess: Preprocess

    def __getitem__(self, index: int) -> NDArray[np.uint8] | DataError:
        try:
            return transforms.evaluation_transform(self.images.load(index), self.preprocess)
        except DataError as error:
            return error


@dataclass(frozen=True)
class _Training(Dataset[Any]):
    images: ImageSet
    preprocess: Preprocess
    augmentation: Augmentation
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> NDArray[np.uint8] | DataError:
        try:
            image = transforms.to_channels(self.images.load(index), len(self.preprocess.mean))
        except DataError as error:
            return error
        rng = _generator(_IMAGE, self.seed, self.epoch, index)
        box = transforms.sample_crops(rng, 1, image.height, image.width, self.augmentation.crop_scale_min)[0]
        flip = rng.uniform() < self.augmentation.flip_probability
        pixels = transforms.crop_image(image, box, flip, self.preprocess.image_size)
        return change_image(pixels, self.augmentation, rng)


def _load(dataset: Dataset[Any], chunks: Sequence[list[int]], workers: int) -> Iterator[Tensor]:
    """Yield `(N, S, S, C)` uint8 batches; an unreadable image is raised here, not in a worker, so that its text survives."""
    loader = DataLoader(
        dataset, batch_sampler=chunks, num_workers=workers, collate_fn=_collate, generator=torch.Generator()
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _collate(items: list[NDArray[np.uint8] | DataError]) -> Tensor | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    return torch.from_numpy(np.stack(items))  # type: ignore[arg-type]  # errors are gone by now


def _decode_small(images: ImageSet, channels: int, device: str) -> Tensor | None:
    """Decode all images into `(N, H, W, C)` uint8, or return None when they are large or differ in size."""
    first = images.load(0)
    if max(first.size) > _CACHED_SIDE or len(images) * first.width * first.height * channels > _CACHED_BYTES:
        return None
    cache = np.empty((len(images), first.height, first.width, channels), np.uint8)
    for index in range(len(images)):
        image = images.load(index)
        if image.size != first.size:
            return None
        cache[index] = transforms.as_array(transforms.to_channels(image, channels))
    return torch.from_numpy(cache).to(device)


def calibration_indices(train: ImageSet, validation: ImageSet, count: int, seed: int) -> list[int]:
    """Choose `count` training images, as many of each class as of any other, none of which is also a validation image.

    Classes with too few images give all they have and the others make up for it; fewer than `count` come back when `train`
    is smaller. Equal contents are recognised whatever the files are called.
    """
    hints = {validation.size_hint(i) for i in range(len(validation))}
    rng = np.random.default_rng((seed, 0xCA11B))
    queues = [list(rng.permutation(np.flatnonzero(train.labels == label))) for label in np.unique(train.labels)]
    held_out: set[bytes] | None = None
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            while queue and len(chosen) < count:
                index = int(queue.pop())
                if train.size_hint(index) in hints:
                    if held_out is None:
                        held_out = {_digest(validation, i) for i in range(len(validation))}
                    if _digest(train, index) in held_out:
                        continue
                chosen.append(index)
                break
    return sorted(chosen)


def _digest(images: ImageSet, index: int) -> bytes:
    return hashlib.sha256(images.content(index)).digest()
