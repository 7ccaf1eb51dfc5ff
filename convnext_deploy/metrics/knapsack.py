"""Choose one option for each item so that the losses are least and the costs stay within a budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEPS = 8192  # of cost


@dataclass(frozen=True)
class Option:
    """What an item may be: its cost >= 0 and its loss."""

    cost: float
    loss: float


class Knapsack:
    """The best choices for all budgets up to the largest, by dynamic programming over costs rounded to whole steps.

    Source: the multiple-choice knapsack problem; Kellerer, Pferschy, Pisinger 2004, "Knapsack Problems", section 11.5.
    """

    def __init__(self, items: Sequence[Sequence[Option]], largest: float, steps: int = _STEPS) -> None:
        """Fill the table.

        Args:
            items: the options of each, at least one.
            largest: budget > 0.
            steps: into which it is divided.
        """
        self._items, self._step = items, largest / steps
        self._slack = len(items) // 2 + 1  # in steps, what rounding changes in all at most
        best = np.zeros(steps + self._slack + 1)
        self._chosen: list[NDArray[np.int64]] = []
        self._steps_of: list[list[int]] = []
        for options in items:
            needed = [round(option.cost / self._step) for option in options]
            table = np.full((len(options), len(best)), np.inf)
            for row, option, count in zip(table, options, needed, strict=True):
                row[count:] = best[: max(0, len(best) - count)] + option.loss
            self._chosen.append(table.argmin(axis=0))
            self._steps_of.append(needed)
            best = table.min(axis=0)
        self._best = best

    def choose(self, budget: float) -> tuple[int, ...] | None:
        """Return the place of the option of each item whose losses are least within a budget; None: none fits."""
        place = min(len(self._best) - 1, int(budget / self._step) + self._slack)
        while place >= 0 and np.isfinite(self._best[place]):
            found = self._trace(place)
            cost = sum(options[own].cost for options, own in zip(self._items, found, strict=True))
            if cost <= budget + 1e-9 * self._step:
                return found
            place -= 1
        return None

    def _trace(self, place: int) -> tuple[int, ...]:
        """Return the options whose losses are least within so many steps."""
        found: list[int] = []
        for chosen, needed in zip(reversed(self._chosen), reversed(self._steps_of), strict=True):
            option = int(chosen[place])
            found.append(option)
            place -= needed[option]
        return tuple(reversed(found))
