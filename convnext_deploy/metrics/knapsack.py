"""Choose one option for each item so that the losses are least and the costs stay within a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEPS = 8192  # of cost; a choice may cost less than the budget by a step for each item


@dataclass(frozen=True)
class Option:
    """What an item may be: its cost >= 0 and its loss."""

    cost: float
    loss: float


class Knapsack:
    """The best choices for all budgets up to the largest, by dynamic programming over costs in whole steps, rounded up.

    Source: the multiple-choice knapsack problem; Kellerer, Pferschy, Pisinger 2004, "Knapsack Problems", section 11.5.
    """

    def __init__(self, items: Sequence[Sequence[Option]], largest: float, steps: int = _STEPS) -> None:
        """Fill the table.

        Args:
            items: the options of each, at least one.
            largest: budget > 0.
            steps: into which it is divided.
        """
        self.items, self._step = items, largest / steps
        best = np.zeros(steps + 1)
        self._chosen: list[NDArray[np.int64]] = []
        self._steps_of: list[list[int]] = []
        for options in items:
            # what is a step but for its last digits is that step
            needed = [int(np.ceil(option.cost / self._step - 1e-9)) for option in options]
            table = np.full((len(options), steps + 1), np.inf)
            for row, option, count in zip(table, options, needed, strict=True):
                if count <= steps:
                    row[count:] = best[: steps + 1 - count] + option.loss
            self._chosen.append(table.argmin(axis=0))
            self._steps_of.append(needed)
            best = table.min(axis=0)
        self._best = best

    def choose(self, budget: float) -> tuple[int, ...] | None:
        """Return the place of the option of each item whose losses are least within a budget; None: none fits."""
        place = min(len(self._best) - 1, int(np.floor(budget / self._step + 1e-9)))
        if place < 0 or not np.isfinite(self._best[place]):
            return None
        found: list[int] = []
        for chosen, needed in zip(reversed(self._chosen), reversed(self._steps_of), strict=True):
            option = int(chosen[place])
            found.append(option)
            place -= needed[option]
        return tuple(reversed(found))
