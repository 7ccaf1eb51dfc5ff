"""Augmented batches for training; those for calibration and validation are `data.evaluation_batches`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data import transforms
from convnext_deploy.data.ahead import on_own_stream, upload
from convnext_deploy.data.augmentation import (
    change_colors_and_shapes,
    change_image,
    crop_and_flip,
    draw_erasures,
    draw_operations,
    erase,
)
from convnext_deploy.data.batch_rows import EpochOrder, OwnBatches, OwnRows, generator, rows_before
from convnext_deploy.data.crops import load_crop
from convnext_deploy.data.datasets import ImageSet
from convnext_deploy.data.evaluation_batches import load_chunks
from convnext_deploy.data.items import name_image
from convnext_deploy.data.mixup import mix
from convnext_deploy.data.pixel_cache import PixelCache, decode_small
from convnext_deploy.data.torchvision_functions import functions
from convnext_deploy.data.workers import Loader
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.system.distributed import World

_BATCH, _IMAGE, _FINISH, _NOISE, _REPEAT = 2, 3, 4, 5, 6  # streams of random numbers, see `generator`


@dataclass(frozen=True)
class Batch:
    """Augmented images `(N, C, S, S)` float32 and labels, `(N,)` int64 or where batches are mixed `(N, classes)` float32;
    of multi-label data `(N, classes)`, see `ImageSet`.

    `epoch` and `first_row` say where they stand in the plan of all augmented images: images with the same `epoch` and row are
    the same, bit for bit, whenever they come again.

    `numbers` are those of the images in the training set, `(N,)` int64 on the CPU, and `mixed_in` those of the images that are
    mixed into them; `weight` is that of the image itself, 1 where nothing is mixed in. None: the images are of no set.
    """

    images: Tensor
    labels: Tensor
    epoch: int = 0
    first_row: int = 0
    numbers: Tensor | None = None
    mixed_in: Tensor | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.images)

    def on_device(self) -> tuple[Tensor, Tensor]:
        """Return the tensors that lie where the network is."""
        return self.images, self.labels

    def chunk(self, parts: int) -> Iterator[Batch]:
        """Yield the batch in that many parts, or fewer where it has fewer images."""
        first = 0
        for images, labels in zip(self.images.chunk(parts), self.labels.chunk(parts), strict=True):
            rows = slice(first, first + len(images))
            numbers, mixed_in = (None if of is None else of[rows] for of in (self.numbers, self.mixed_in))
            yield Batch(images, labels, self.epoch, self.first_row + first, numbers, mixed_in, self.weight)
            first += len(images)


@dataclass(frozen=True)
class BatchPlan:
    """What the batches of a training hold, wherever and by however many processes they are made.

    Attributes:
        batch_size: of all processes together; with fewer images, their number.
        num_classes: of the network.
        augmentation: the training transforms.
        seed: of order and augmentation.
        own_epochs: so many epochs have batches of their own; later ones repeat these batches in another order. 0: all.
    """

    batch_size: int
    num_classes: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    own_epochs: int = 0


class TrainingBatches:
    """Augmented batches; what batch `k` of epoch `e` holds depends on the seed, `e` and `k` alone, not on workers.

    Images of one size, at most 96 pixels a side, are decoded once, kept as uint8 and augmented in batches on the device; large
    ones are decoded, cropped and changed by the loader's workers. The last incomplete batch of an epoch is dropped. Where some
    images have no labels, see `TaughtImages`, each batch has its share of them, and they are mixed with each other alone.

    Several processes that train together each get the rows of every batch that are theirs, and these are the rows that one process
    alone would have there: only what concerns the whole batch is drawn by all.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocess: Preprocess,
        plan: BatchPlan,
        *,
        workers: int = 0,
        device: str = "cpu",
        cache: PixelCache | None = None,
        world: World | None = None,
    ) -> None:
        """Decode small images.

        Args:
            images: of the training set.
            preprocess: normalization and size.
            plan: what the batches hold.
            workers: processes that load large images; 0: this one.
            device: where batches are augmented and yielded.
            cache: the decoded images if they are small; None: decoded here.
            world: which process this is; None: the only one.

        Raises: DataError, RecipeError: if an image cannot be read, or the processes cannot share a batch evenly.
        """
        self.images, self.preprocess, self.plan, self.workers, self.device = images, preprocess, plan, workers, device
        self.batch_size = min(plan.batch_size, len(images))
        world = world or World()
        if self.batch_size % world.size:
            raise RecipeError(
                f"a batch of {self.batch_size} images does not divide among {world.size} processes; "
                f"use a batch_size that is a multiple of {world.size} and at most {len(images)}."
            )
        share = self.batch_size // world.size
        self._first = world.rank * share
        before = rows_before(images, self.batch_size) if plan.augmentation.is_mixing else None
        self._rows = OwnRows(before, slice(self._first, self._first + share), self.batch_size)
        cache = cache or decode_small(images, len(preprocess.mean))
        self._small = None if cache is None else cache.on(device)
        functions()  # imported here once, and not in each process that loads images
        self._loader = Loader(_TrainingItems(images, preprocess, plan), self.batch_size, workers)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def close(self) -> None:
        """End the processes that load images, which otherwise wait for the next epoch."""
        self._loader.close()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on, without computing those before.

        They are on the device, and images are channels-last in memory.
        """
        return on_own_stream(self._epoch(epoch, start), self.device)

    def _epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        planned = epoch % self.plan.own_epochs if self.plan.own_epochs else epoch
        numbers = np.arange(len(self))
        if planned != epoch:
            numbers = generator(_REPEAT, self.plan.seed, epoch).permutation(numbers)
        chunks = EpochOrder(self.images, self.batch_size, self.plan.seed, planned)
        numbers = numbers[start:]
        for number, pixels in zip(numbers.tolist(), self._pixels(chunks, planned, numbers), strict=True):
            own = self._own(chunks[number])
            labels = upload(torch.from_numpy(self.images.labels[own]), self.device)
            images = transforms.normalize(upload(pixels, self.device), self.preprocess)
            images, labels, weight = self._finish(images, labels, planned, number)
            surplus = self._rows.surplus
            first_row = number * self.batch_size + self._first
            numbered, mixed_in = (torch.from_numpy(each[surplus:]) for each in (own, own[self._rows.before]))
            yield Batch(images, labels, planned, first_row, numbered, mixed_in, weight)

    def _own(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """Return this process's part of what there is for each row of a batch, after the rows that are mixed into it."""
        own: NDArray[Any] = chunk[self._rows.rows]
        return own

    def _finish(self, images: Tensor, labels: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor, float]:
        """Erase and mix, which come after normalization, and leave out the rows that were there to be mixed in.

        Returns: images, labels, and the weight of each image itself.
        """
        rng = generator(_FINISH, self.plan.seed, epoch, number)
        probability = self.plan.augmentation.random_erasing_probability
        if probability:
            boxes = self._own(draw_erasures(rng, self.batch_size, images.shape[2], images.shape[3], probability))
            rows = self._own(np.arange(self.batch_size))
            images = erase(
                images, boxes, lambda index: generator(_NOISE, self.plan.seed, epoch, number, int(rows[index]))
            )
        weight = 1.0
        if self.plan.augmentation.is_mixing:
            before = upload(torch.from_numpy(self._rows.before), images.device)
            images, labels, weight = mix(images, labels, self.plan.num_classes, self.plan.augmentation, rng, before)
        surplus = self._rows.surplus
        return images[surplus:], labels[surplus:], weight

    def _pixels(self, chunks: EpochOrder, epoch: int, numbers: NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield this process's images of the numbered chunks as `(N, S, S, C)` uint8."""
        size, wanted = self.preprocess.sides, self.plan.augmentation
        own = OwnBatches(chunks, numbers, self._own)
        if self._small is None:
            yield from load_chunks(self._loader, own, epoch)
            return
        _, height, width, _ = self._small.shape
        for number, chunk in zip(numbers.tolist(), own, strict=True):
            rng = generator(_BATCH, self.plan.seed, epoch, number)
            boxes = transforms.sample_crops(rng, self.batch_size, height, width, wanted.crop_scale_min)
            flips = rng.uniform(size=self.batch_size) < wanted.flip_probability
            plans = draw_operations(wanted, rng, self.batch_size, min(size))
            chosen = upload(self._small[upload(torch.from_numpy(chunk), self._small.device)], self.device)
            cropped = crop_and_flip(chosen, self._own(boxes), self._own(flips), size)
            yield change_colors_and_shapes(cropped, [plan.select(self._own) for plan in plans])


@dataclass(frozen=True)
class _TrainingItems:
    """Images as they are in an epoch, `(S, S, C)` uint8."""

    images: ImageSet
    preprocess: Preprocess
    plan: BatchPlan

    @property
    def shape(self) -> tuple[int, int, int]:
        return *self.preprocess.sides, len(self.preprocess.mean)

    def load(self, index: int, epoch: int) -> NDArray[np.uint8] | DataError:
        rng, wanted = generator(_IMAGE, self.plan.seed, epoch, index), self.plan.augmentation

        def draw(height: int, width: int) -> tuple[NDArray[np.float64], bool]:
            box = transforms.sample_crops(rng, 1, height, width, wanted.crop_scale_min)[0]
            return box, bool(rng.uniform() < wanted.flip_probability)

        try:
            pixels = load_crop(self.images, index, len(self.preprocess.mean), draw, self.preprocess.sides)
        except DataError as error:
            return error
        return change_image(pixels, wanted, rng)

    def name(self, index: int) -> str:
        return name_image(self.images, index)
