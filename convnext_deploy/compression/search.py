"""The widths whose losses are least under a time: a knapsack over the blocks, then the best by measurement of what lies near it.

That losses of blocks add up is only nearly true. So the knapsack proposes several networks, each for losses whose blocks weigh a
little more or less; all are measured whole, and a second generation is proposed around the weights of the best.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.compression.time_model import TimeModel
from convnext_deploy.metrics.knapsack import Knapsack, Option
from convnext_deploy.models.block_shapes import BlockShape

Losses = Sequence[Mapping[int, float]]
"""What the network loses when a block has so many hidden units and all others are whole, for each block: width → loss >= 0."""
_SPREADS = (0.5, 0.2)  # of the logarithms of the blocks' weights, in each generation


@dataclass(frozen=True)
class Widths:
    """A choice of hidden widths: what it takes by the model of times, and the sum of the blocks' losses.

    `measured`: the loss of the whole network; None: it was not measured.
    """

    widths: tuple[int, ...]
    predicted_ms: float
    loss: float
    measured: float | None = None

    @property
    def order(self) -> tuple[float, float]:
        """What is less for the better choice: the measured loss, and where that is the same the sum."""
        return (self.loss if self.measured is None else self.measured, self.loss)


@dataclass(frozen=True)
class Price:
    """What it means that a block gets `width` hidden units: `saved_ms` of a call, at a loss of `loss`."""

    shape: BlockShape
    width: int
    saved_ms: float
    loss: float


class WidthSearch:
    """Finds widths for a network by what they take and lose.

    Args:
        shapes: the blocks of the dense network.
        losses: of the widths that each may have.
        times: of the form in which the network will run.
        seed: of the proposals.
    """

    def __init__(self, shapes: Sequence[BlockShape], losses: Losses, times: TimeModel, seed: int = 0) -> None:
        self._shapes, self._losses, self._times, self._seed = shapes, losses, times, seed
        self._options = [sorted(each) for each in losses]
        self._plain = self._table(np.ones(len(shapes)))

    @property
    def dense_ms(self) -> float:
        """The time of the network as it is."""
        return self._times.predict_ms(self._shapes, [shape.hidden for shape in self._shapes])

    @property
    def least_ms(self) -> float:
        """The time of all but the blocks, and of the cheapest block: nothing is faster."""
        return self._times.fixed_ms + min(
            self._times.block_ms(self._shapes[place], width) for place, width in self._least()
        )

    def _least(self) -> list[tuple[int, int]]:
        """Return the place and the least width of each block that is there."""
        return [(place, min(filter(None, options))) for place, options in enumerate(self._options) if any(options)]

    def _rows(self) -> Iterator[tuple[BlockShape, list[int]]]:
        return zip(self._shapes, self._options, strict=True)

    def _table(self, weights: NDArray[np.float64]) -> Knapsack:
        items = [
            [Option(self._times.block_ms(shape, width), float(weight) * losses[width]) for width in options]
            for (shape, options), losses, weight in zip(self._rows(), self._losses, weights, strict=True)
        ]
        return Knapsack(items, max(self.dense_ms - self._times.fixed_ms, 1e-9))

    def choose(self, budget_ms: float, table: Knapsack | None = None) -> Widths | None:
        """Return the widths that lose least within a time, by the sum of the losses; None: no network is so fast."""
        found = (table or self._plain).choose(budget_ms - self._times.fixed_ms)
        if found is None:
            return None
        widths = [options[place] for options, place in zip(self._options, found, strict=True)]
        return self.describe(widths) if any(widths) else self._smallest(budget_ms)

    def _smallest(self, budget_ms: float) -> Widths | None:
        """Return the network of a single block that loses least within a time; None: even that takes longer."""
        alone = []
        for place, width in self._least():
            widths = [0] * len(self._shapes)
            widths[place] = width
            alone.append(self.describe(widths))
        return min((each for each in alone if each.predicted_ms <= budget_ms), key=lambda each: each.loss, default=None)

    def describe(self, widths: Sequence[int]) -> Widths:
        """Return what a choice takes and loses."""
        loss = sum(losses[width] for losses, width in zip(self._losses, widths, strict=True))
        return Widths(tuple(widths), self._times.predict_ms(self._shapes, widths), loss)

    def front(self, budgets_ms: Sequence[float]) -> list[Widths]:
        """Return the choice for each time, each choice once."""
        found = {
            choice.widths: choice for budget in budgets_ms if (choice := self.choose(budget)) and any(choice.widths)
        }
        return list(found.values())

    def refine(self, budget_ms: float, measure: Callable[[tuple[int, ...]], float], proposals: int = 8) -> list[Widths]:
        """Return choices near the optimum within a time, with measured losses, the best first; none: no network is so fast.

        Args:
            budget_ms: the time of a call.
            measure: returns the loss of the whole network with these widths.
            proposals: networks in each generation, at most.
        """
        rng = np.random.default_rng(self._seed)
        first = self.choose(budget_ms)
        if first is None:
            return []
        centre = np.zeros(len(self._shapes))
        found = {first.widths: _measured(first, measure)}
        weights = {first.widths: centre}
        for spread in _SPREADS:
            for _ in range(proposals):
                own = centre + spread * rng.standard_normal(len(centre))
                choice = self.choose(budget_ms, self._table(np.exp(own)))
                if choice is not None and choice.widths not in found:
                    found[choice.widths], weights[choice.widths] = _measured(choice, measure), own
            centre = weights[min(found.values(), key=lambda each: each.order).widths]
        return sorted(found.values(), key=lambda each: each.order)

    def prices(self, chosen: Widths) -> list[Price]:
        """Return what the width of each block saves, and what it costs."""
        return [
            Price(
                shape,
                width,
                self._times.block_ms(shape, shape.hidden) - self._times.block_ms(shape, width),
                losses[width],
            )
            for shape, losses, width in zip(self._shapes, self._losses, chosen.widths, strict=True)
        ]


def _measured(choice: Widths, measure: Callable[[tuple[int, ...]], float]) -> Widths:
    return Widths(choice.widths, choice.predicted_ms, choice.loss, measure(choice.widths))
