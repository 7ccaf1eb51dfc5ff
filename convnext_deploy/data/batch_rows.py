"""Which image stands in which row of the batches of an epoch, and which row is mixed into which."""

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.image_sets import ImageSet, TaughtImages
from convnext_deploy.data.shards import ShardImages

LANES = 8
"""Rows of shards that are read at the same time, each for its own rows of every batch."""
BUFFER = 2048
"""Images of a lane among which the next is drawn."""
_ORDER = 1  # streams of random numbers, see `generator`
_LABELLED, _UNLABELLED, _STREAM = 7, 8, 9


def generator(stream: int, *parts: int) -> np.random.Generator:
    """Return the random numbers of a stream, which has one number everywhere, and not 0."""
    # The stream comes first and is not 0: NumPy pads seeds with zeros, so that (seed, epoch) and (seed, epoch, 0) are the same.
    return np.random.default_rng((stream, *parts))


def order_images(images: ImageSet, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the numbers of the images in the batches of an epoch, `(batches, batch_size)`.

    Each comes once, but for the last incomplete batch. Where some have no labels, the labelled ones are first in each batch, and
    the epoch is as long; each kind goes on where it was at the end of the epoch before, and begins anew, in another order, when
    all of it has come.

    Shards that are streamed are put into a random order, one after another, and cut into `LANES` of equal length. Each lane fills
    its own rows of the batches, so that a process reads only the lanes of its rows; within a lane an image comes up to `BUFFER`
    images later than it is read, at random.
    """
    steps = len(images) // batch_size
    if isinstance(images, ShardImages) and images.streamed:
        return _order_stream(images, batch_size, seed, epoch)
    if not isinstance(images, TaughtImages):
        order = generator(_ORDER, seed, epoch).permutation(len(images))[: steps * batch_size]
        return order.reshape(steps, batch_size)
    first = len(images.labelled)
    labelled, unlabelled = images.counts(batch_size)
    parts = (
        _go_round(_LABELLED, seed, first, epoch * steps * labelled, steps * labelled).reshape(steps, labelled),
        _go_round(_UNLABELLED, seed, len(images) - first, epoch * steps * unlabelled, steps * unlabelled).reshape(
            steps, -1
        )
        + first,
    )
    return np.concatenate(parts, axis=1)


def _order_stream(images: ShardImages, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    steps, start = len(images) // batch_size, 0
    random = generator(_STREAM, seed, epoch)
    place = random.permutation(len(images.index.shards))
    read = np.argsort(place[images.index.samples["shard"][images.rows]], kind="stable")
    lanes = min(LANES, batch_size)
    parts = []
    for rows in np.diff(np.arange(lanes + 1) * batch_size // lanes).tolist():
        lane = read[start : start + steps * rows]
        start += len(lane)
        drawn = np.argsort(np.arange(len(lane)) + random.uniform(0, BUFFER, len(lane)))
        parts.append(lane[drawn].reshape(steps, rows))
    return np.concatenate(parts, axis=1)


def _go_round(stream: int, seed: int, count: int, start: int, length: int) -> NDArray[np.int64]:
    """Return a part of the endless row of all permutations of `count` numbers."""
    if not length:
        return np.empty(0, np.int64)
    rounds = range(start // count, -(-(start + length) // count))
    row = np.concatenate([generator(stream, seed, number).permutation(count) for number in rounds])
    return row[start % count :][:length]


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
