"""The order in which training reads shards that lie on another machine and are too many to be kept: one after another."""

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.shards import ShardImages

LANES = 8
"""Rows of shards that are read at the same time, each for its own rows of every batch."""
BUFFER = 2048
"""Images of a lane among which the next is drawn."""


def order_stream(images: ShardImages, batch_size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the numbers of the images in the batches of an epoch, `(batches, batch_size)`; the last incomplete batch is dropped.

    The shards are put into a random order, one after another, and cut into `LANES` of equal length. Each lane fills its own rows
    of the batches, so that a process reads only the lanes of its rows; within a lane an image comes up to `BUFFER` images later
    than it is read, at random.
    """
    steps, start = len(images) // batch_size, 0
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
