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
from convnext_deploy.data.sources import ImageSet
from convnext_deploy.errors import DataError
from convnext_deploy.spec import Preprocess

_CACHED_SIDE = 96  # pixels; larger images are decoded again in every epoch
_CACHED_BYTES = 2 << 30


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
    """Random resized crops and flips; what epoch `e` yields depends on the seed and `e` alone.

    Small images of one size (up to 96 pixels) are decoded once, kept as uint8 and augmented in batches on the device.
    The last incomplete batch of an epoch is dropped.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocess: Preprocess,
        *,
        batch_size: int,
        crop_scale_min: float,
        flip_probability: float,
        seed: int,
        workers: int = 0,
        device: str = "cpu",
    ) -> None:
        self.images, self.preprocess, self.seed, self.workers, self.device = images, preprocess, seed, workers, device
        self.batch_size = min(batch_size, len(images))
        self.crop_scale_min, self.flip_probability = crop_scale_min, flip_probability
        self._cache = _decode_small(images, len(preprocess.mean), device)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images `(N, C, S, S)` float32 and labels `(N,)` int64, both on the device."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.images))[: len(self) * self.batch_size].reshape(len(self), self.batch_size)
        for pixels, chunk in zip(self._pixels(order, epoch, rng), order, strict=True):
            labels = torch.from_numpy(self.images.labels[chunk]).to(self.device)
            yield transforms.normalize(pixels.to(self.device), self.preprocess), labels

    def _pixels(self, order: NDArray[np.int64], epoch: int, rng: np.random.Generator) -> Iterator[Tensor]:
        if self._cache is None:
            dataset = _Augmentation(
                self.images, self.preprocess, self.crop_scale_min, self.flip_probability, self.seed, epoch
            )
            yield from _load(dataset, order.tolist(), self.workers)
            return
        _, height, width, _ = self._cache.shape
        for chunk in order:
            boxes = transforms.sample_crops(rng, len(chunk), height, width, self.crop_scale_min)
            flips = rng.uniform(size=len(chunk)) < self.flip_probability
            chosen = self._cache[torch.from_numpy(chunk).to(self._cache.device)]
            yield transforms.crop_batch(chosen, boxes, flips, self.preprocess.image_size)


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
class _Augmentation(Dataset[Any]):
    images: ImageSet
    preprocess: Preprocess
    crop_scale_min: float
    flip_probability: float
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> NDArray[np.uint8] | DataError:
        try:
            image = transforms.to_channels(self.images.load(index), len(self.preprocess.mean))
        except DataError as error:
            return error
        # Seeded per image, so that the number of workers changes nothing.
        rng = np.random.default_rng((self.seed, self.epoch, index))
        box = transforms.sample_crops(rng, 1, image.height, image.width, self.crop_scale_min)[0]
        return transforms.crop_image(image, box, rng.uniform() < self.flip_probability, self.preprocess.image_size)


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
