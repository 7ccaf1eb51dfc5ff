"""Images by which a network is calibrated and judged, and what it gives for them; of several processes all run it."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.data import transforms
from convnext_deploy.data.datasets import ImageSet
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.sampling import alone, calibration_indices, divide_training_images
from convnext_deploy.errors import DataError
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.packing import Kept
from convnext_deploy.system.progress import Task
from convnext_deploy.system.shared_work import AT_ONCE, share_out

PIXELS_AT_ONCE = 8 * 224 * 224  # more are not faster on a CPU and take memory
_BYTES_IN_MEMORY = 1 << 28  # images beyond are decoded again for every pass


@dataclass
class Images(Kept):
    """Some images of a set, in an order that has nothing to do with their classes.

    The first of them are kept in memory, as pixels; others are decoded again in every pass. Of several processes each keeps those
    of its own batches.
    """

    source: ImageSet
    preprocess: Preprocess
    indices: Sequence[int]
    batch_size: int
    workers: int
    device: str

    def __post_init__(self) -> None:
        self._kept: list[Tensor] = []
        self._parts: dict[int, Images] = {}  # of several processes, by the first of their batches

    def __reduce__(self) -> tuple[Any, ...]:
        """Send these images alone, and no pixels."""
        own = alone(self.source, self.indices), self.preprocess, range(len(self))
        return Images, (*own, self.batch_size, self.workers, self.device)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """Return the classes, `(N,)` int64."""
        return torch.from_numpy(self.source.labels[list(self.indices)])

    def batches(self, task: Task | None = None, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Yield normalized batches `(n, C, S, S)` on the device, of the images from `start`, where a batch begins, to `stop`."""
        for pixels in self._pixels(start, len(self) if stop is None else min(stop, len(self))):
            yield transforms.normalize(pixels, self.preprocess).to(self.device)
            if task is not None:
                task.advance(len(pixels))

    @property
    def lengths(self) -> list[int]:
        """The numbers of images of all batches."""
        return [min(self.batch_size, len(self) - start) for start in range(0, len(self), self.batch_size)]

    def numbered(self, numbers: range) -> Iterator[Tensor]:
        """Yield the batches with these numbers, from 0; as `batches`."""
        size, step = self.batch_size, numbers.step
        own, first = self, numbers.start % step
        if step > 1:
            if first not in self._parts:
                starts = range(first * size, len(self), step * size)
                indices = [index for start in starts for index in self.indices[start : start + size]]
                self._parts[first] = dataclasses.replace(self, indices=indices)
            own = self._parts[first]
        start = numbers.start // step * size
        yield from own.batches(start=start, stop=start + len(numbers) * size)

    def _pixels(self, place: int, stop: int) -> Iterator[Tensor]:
        for pixels in self._kept[place // self.batch_size :]:
            if place >= stop:
                return
            yield pixels[: stop - place]
            place += len(pixels)
        rest = self.indices[place:stop]
        if not rest:
            return
        room = _BYTES_IN_MEMORY // (math.prod(self.preprocess.sides) * len(self.preprocess.mean))
        batches = EvaluationBatches(self.source, self.preprocess, self.batch_size, self.workers, rest, as_pixels=True)
        for pixels, _ in batches:
            whole = len(pixels) == self.batch_size or place + len(pixels) == len(self)
            if whole and place == len(self._kept) * self.batch_size and place + len(pixels) <= room:
                self._kept.append(pixels)
            place += len(pixels)
            yield pixels

    def first(self, count: int) -> Tensor:
        """Return the first images as one tensor, `(min(N, count), C, S, S)` on the device."""
        return torch.cat(list(self.batches(stop=count)))


def choose_images(count: int, preprocess: Preprocess, context: StageContext, batch_size: int) -> Images:
    """Return so many training images for calibration, as many of each class, none of them a validation image.

    Raises: DataError: if there is no image at all.
    """
    data = context.need_data()
    chosen = calibration_indices(data.train, data.validation, count, context.execution.seed, (), data.contents)
    images = _images(chosen, preprocess, context, batch_size)
    if len(images) < count:
        context.execution.progress.say(
            f"{context.name}: {len(images)} calibration images, as the training set has no more"
        )
    return images


def choose_images_to_judge(
    counts: tuple[int, int], preprocess: Preprocess, context: StageContext, batch_size: int
) -> tuple[Images, Images]:
    """Return training images for calibration and others to judge by, as `divide_training_images` chooses them.

    Raises: DataError: if there is no image at all.
    """
    data = context.need_data()
    calibrating, judging = divide_training_images(
        data.train, data.validation, counts, context.execution.seed, data.contents
    )
    images = _images(calibrating, preprocess, context, batch_size)
    return images, (
        _images(judging, preprocess, context, batch_size) if judging else dataclasses.replace(images, indices=())
    )


def _images(chosen: Sequence[int], preprocess: Preprocess, context: StageContext, batch_size: int) -> Images:
    """Return training images in an order that has nothing to do with their classes. Raises: DataError: if there is none."""
    data = context.need_data()
    if not chosen:
        raise DataError(
            f"every training image of {data.name} is also a validation image; none is left for calibration."
        )
    order = [chosen[i] for i in np.random.default_rng((context.execution.seed, 0x5E7)).permutation(len(chosen))]
    batch_size = min(batch_size, max(1, PIXELS_AT_ONCE // math.prod(preprocess.sides)))
    return Images(data.train, preprocess, order, batch_size, context.execution.workers, context.execution.exact_device)


@dataclass(frozen=True)
class _Outputs:
    """What a network gives for each batch of some images."""

    network: nn.Module
    images: Images

    @torch.no_grad()
    def __call__(self, numbers: range) -> Iterator[Tensor]:
        for batch in self.images.numbered(numbers):
            yield self.network(batch).float().cpu()


def outputs_by_batch(network: nn.Module, images: Images, start: int = 0, at_once: int = AT_ONCE) -> Iterator[Tensor]:
    """Yield what a network gives for each batch from number `start` on, `(n, …)` on the CPU; all processes run it.

    `at_once`: batches of each process between two exchanges, see `share_out`.
    """
    return share_out(_Outputs(network, images), range(start, len(images.lengths)), at_once)


def outputs_of(network: nn.Module, images: Images, advance: Callable[[int], None] = lambda count: None) -> Tensor:
    """Return what a network gives for images, `(N, …)` on the CPU; `advance` is told of so many more images done."""
    found = []
    for outputs in outputs_by_batch(network, images):
        found.append(outputs)
        advance(len(outputs))
    return torch.cat(found)
