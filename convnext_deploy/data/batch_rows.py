"""Which image stands in which row of the batches of an epoch, and which row is mixed into which."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.image_sets import ImageSet, TaughtImages
from convnext_deploy.data.permutation import Permutation
from convnext_deploy.data.shard_streams import order_stream
from convnext_deploy.data.shards import ShardImages

_ORDER = 1  # streams of random numbers, see `generator`
_LABELLED, _UNLABELLED, _STREAM = 7, 8, 9


def generator(stream: int, *parts: int) -> np.random.Generator:
    """Return the random numbers of a stream, which has one number everywhere, and not 0."""
    # The stream comes first and is not 0: NumPy pads seeds with zeros, so that (seed, epoch) and (seed, epoch, 0) are the same.
    return np.random.default_rng((stream, *parts))


class Batches(Sequence[NDArray[np.int64]], ABC):
    """Numbers of images by batch, made when they are asked for."""

    @abstractmethod
    def batch(self, number: int) -> NDArray[np.int64]:
        """Return the numbers of a batch, counted from 0."""

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.int64]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.int64] | Sequence[NDArray[np.int64]]:
        """Return a batch, or those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.batch(index % len(self))


class EpochOrder(Batches):
    """The numbers of the images in each batch of an epoch, `(batch_size,)`, made when they are asked for.

    Each comes once, but for the last incomplete batch. Where some have no labels, the labelled ones are first in each batch, and
    the epoch is as long; each kind goes on where it was at the end of the epoch before, and begins anew, in another order, when
    all of it has come.
    """

    def __init__(self, images: ImageSet, batch_size: int, seed: int, epoch: int) -> None:
        self._batches = len(images) // batch_size
        self._streamed: NDArray[np.int64] | None = None
        self._parts: list[_Part] = []
        if isinstance(images, ShardImages) and images.streamed:
            self._streamed = order_stream(images, batch_size, generator(_STREAM, seed, epoch))
            return
        if not isinstance(images, TaughtImages):
            order = Permutation(generator(_ORDER, seed, epoch), len(images))
            self._parts = [_Part(0, batch_size, 0, [order])]
            return
        first = len(images.labelled)
        kinds = zip(
            (_LABELLED, _UNLABELLED), (0, first), (first, len(images) - first), images.counts(batch_size), strict=True
        )
        self._parts = [
            _go_round(stream, seed, start, count, (epoch * self._batches * each, self._batches * each), each)
            for stream, start, count, each in kinds
            if each
        ]

    def __len__(self) -> int:
        return self._batches

    def batch(self, number: int) -> NDArray[np.int64]:
        """Return a batch."""
        if self._streamed is not None:
            streamed: NDArray[np.int64] = self._streamed[number]
            return streamed
        return np.concatenate([part.batch(number) for part in self._parts])


@dataclass(frozen=True)
class OwnBatches(Batches):
    """The `numbers` of an order's batches, and of each what is `own`, made when they are asked for."""

    order: EpochOrder
    numbers: NDArray[np.int64]
    own: Callable[[NDArray[np.int64]], NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, number: int) -> NDArray[np.int64]:
        """Return what is own of a batch."""
        return self.own(self.order[int(self.numbers[number])])


@dataclass(frozen=True)
class _Part:
    """The images of one kind: `each` of a batch, numbered from `first`, from place `start` of the `orders` on, which follow each
    other.
    """

    first: int
    each: int
    start: int
    orders: Sequence[Permutation]

    def batch(self, number: int) -> NDArray[np.int64]:
        places = self.start + number * self.each + np.arange(self.each)
        which, inside = np.divmod(places, len(self.orders[0]))
        found = [self.orders[turn].at(inside[which == turn]) for turn in range(which[0], which[-1] + 1)]
        return self.first + np.concatenate(found)


def _go_round(stream: int, seed: int, first: int, count: int, places: tuple[int, int], each: int) -> _Part:
    """Return a part, by start and length, of the endless row of all permutations of `count` numbers."""
    start, length = places
    rounds = range(start // count, max(start // count + 1, -(-(start + length) // count)))
    return _Part(first, each, start % count, [Permutation(generator(stream, seed, turn), count) for turn in rounds])


def rows_before(images: ImageSet, batch_size: int) -> NDArray[np.int64]:
    """Return for each row of a batch the one that is mixed into it: the one before, and of the same kind; `(batch_size,)`."""
    labelled = images.counts(batch_size)[0] if isinstance(images, TaughtImages) else batch_size
    before = np.arange(batch_size) - 1
    for first, end in ((0, labelled), (labelled, batch_size)):
        if first < end:
            before[first] = end - 1
    return before


class OwnRows:
    """The rows of each batch that a process makes: its part, and in front of it others that are mixed into that.

    Args:
        before: which row is mixed into which, see `rows_before`; None: none.
        part: of the batch.
        batch_size: of all processes together.
    """

    def __init__(self, before: NDArray[np.int64] | None, part: slice, batch_size: int) -> None:
        own = np.arange(part.start, part.stop)
        others = np.empty(0, np.int64) if before is None else np.setdiff1d(before[own], own)
        self.rows = np.concatenate([others, own])
        """Their numbers, `(R,)`."""
        self.surplus = len(others)
        """How many are there only to be mixed in."""
        place = np.zeros(batch_size, np.int64)
        place[self.rows] = np.arange(len(self.rows))
        self.before = np.arange(len(self.rows))
        """Which of these rows is mixed into each of them, `(R,)`; the surplus ones stay as they are."""
        if before is not None:
            self.before[self.surplus :] = place[before[own]]
