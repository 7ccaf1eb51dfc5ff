"""How long a network takes whose blocks have given hidden widths: a fixed time, and one for each block.

The time of a block depends on its model stage and its width alone: blocks of a stage have the same channels, map and kernel. Over
the width it is linear between a few widths, and never falls. It is not measured on blocks alone: what a runtime needs around a
block, and what it fuses across blocks, is only there in a network. Of a few dozen whole networks with random widths every time is a
sum of the unknown costs, which least squares with costs >= 0 finds.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.metrics.nonnegative import solve_nonnegative
from convnext_deploy.models.block_shapes import WIDTH_STEP, BlockShape

_KNOTS = (0.25, 0.5, 1.0)  # of the full width, between which a time is linear
_STRAIGHT = 0.02  # weight of bends beside the errors of the measured times


@dataclass(frozen=True)
class Curve:
    """The time of a block in ms over its hidden width: 0 without the block, linear between `widths`, of which the first is the
    least that a block has.
    """

    widths: tuple[int, ...]
    ms: tuple[float, ...]

    def at(self, width: int) -> float:
        """Return the time of a block of so many hidden units."""
        return float(np.interp(width, self.widths, self.ms)) if width else 0.0


@dataclass(frozen=True)
class TimeModel:
    """What predicts the time of a call: `fixed_ms` for all but the blocks, and the curve of each model stage."""

    fixed_ms: float
    curves: tuple[Curve, ...]

    def block_ms(self, shape: BlockShape, width: int) -> float:
        """Return the time of a block of this shape with so many hidden units."""
        return self.curves[shape.stage].at(width)

    def predict_ms(self, shapes: Sequence[BlockShape], widths: Sequence[int]) -> float:
        """Return the time of a network whose blocks have these hidden widths."""
        return self.fixed_ms + sum(map(self.block_ms, shapes, widths))


def fit_times(shapes: Sequence[BlockShape], widths: Sequence[Sequence[int]], times_ms: Sequence[float]) -> TimeModel:
    """Find the costs of which the times of networks are the sums.

    Args:
        shapes: blocks of the network as it is, with its largest widths.
        widths: hidden width of each block of the networks that were timed.
        times_ms: of a call of each, > 0; errors count as shares of them.
    """
    knots = tuple(_knots(shapes, stage) for stage in range(1 + max(shape.stage for shape in shapes)))
    rows = np.array([_row(shapes, each, knots) for each in widths])
    times = np.asarray(times_ms, dtype=np.float64)
    bends = np.array([*_bends(knots), np.zeros(rows.shape[1])]) / times.max()
    matrix = np.concatenate([rows / times[:, None], _STRAIGHT * len(times) * bends])
    found = solve_nonnegative(matrix, np.concatenate([np.ones(len(times)), np.zeros(len(bends))]))
    fixed, place, curves = float(found[0]), 1, []
    for own in knots:
        curves.append(Curve(own, tuple(np.cumsum(found[place : place + len(own)]).tolist())))
        place += len(own)
    return TimeModel(fixed, tuple(curves))


def _knots(shapes: Sequence[BlockShape], stage: int) -> tuple[int, ...]:
    """Return the widths between which the time of a stage's blocks is linear; of a stage without blocks one."""
    full = max((shape.hidden for shape in shapes if shape.stage == stage), default=0)
    inner = (WIDTH_STEP * round(share * full / WIDTH_STEP) for share in _KNOTS[:-1])
    least = min(WIDTH_STEP, full)
    return tuple(sorted({least, full, *(width for width in inner if least < width < full)}))


def _row(shapes: Sequence[BlockShape], widths: Sequence[int], knots: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
    """Return how often each unknown counts for a network: the fixed time, then for each stage a block and its further parts."""
    found = [np.zeros(len(own)) for own in knots]
    for shape, width in zip(shapes, widths, strict=True):
        if width:
            own = knots[shape.stage]
            parts = [np.clip((width - low) / (high - low), 0.0, 1.0) for low, high in itertools.pairwise(own)]
            found[shape.stage] += [1.0, *parts]
    return np.concatenate([[1.0], *found])


def _bends(knots: Sequence[tuple[int, ...]]) -> Iterator[NDArray[np.float64]]:
    """Yield rows that say how far the time of a stage's block is from a straight line at its inner widths."""
    count, place = 1 + sum(map(len, knots)), 1
    for own in knots:
        lengths = np.diff(own)
        for inner in range(1, len(lengths)):
            row = np.zeros(count)
            both = lengths[inner - 1] + lengths[inner]
            row[place + inner], row[place + inner + 1] = lengths[inner] / both, -lengths[inner - 1] / both
            yield row
        place += len(own)
