"""The loss of a training, summed where it is computed and read when it is shown: reading it makes the host wait for the GPU."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext_deploy.system.distributed import gather

LINE_EVERY_S = 1.0
_LARGEST_GROWTH = (
    2  # of the steps from one line to the next, so that a slow first step or a short pause decides nothing
)


@dataclass(frozen=True)
class Reading:
    """`total` of the epoch so far and `last`, of this process's part of the batches.

    `bad_after`: so many steps after the last reading the loss was first not finite, but `bad`; None: it was always finite.
    """

    total: float
    last: float
    bad_after: int | None
    bad: float


def widest_dtype(device: str) -> torch.dtype:
    """Return float64, or float32 on devices that have no other."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


class LossMeter:
    """Adds up the losses of an epoch on the device and remembers the first that is not finite; nothing is copied until `read`.

    Sums are as `widest_dtype` says, in the order of the steps, however often they are read.
    """

    def __init__(self, device: str) -> None:
        self._dtype = widest_dtype(device)
        # the sum, the last loss, which step since the last reading had the first bad one (from 1; 0: none), and that one
        self._sum, self._last, self._bad_at, self._bad = torch.zeros(4, dtype=self._dtype, device=device)
        self._step: Tensor | None = None
        self._since = 0
        self.forget()

    def forget(self, total: float = 0.0) -> None:
        """Begin an epoch, or go on in one whose losses so far have this sum."""
        self._sum.fill_(total)
        self._bad_at.zero_()
        self._since = 0

    def add(self, loss: Tensor) -> None:
        """Take the loss of a part of a batch, a scalar on the device that counts by its share."""
        part = loss.detach().to(self._dtype)
        self._step = part if self._step is None else self._step + part

    def end_step(self) -> None:
        """Take what was added since the last step as the loss of one."""
        assert self._step is not None  # a batch has a part
        self._since += 1
        is_first = ~self._step.isfinite() & (self._bad_at == 0)
        self._bad_at = torch.where(is_first, float(self._since), self._bad_at)
        self._bad = torch.where(is_first, self._step, self._bad)
        self._sum = self._sum + self._step
        self._last, self._step = self._step, None

    def read(self) -> Reading:
        """Return what the device has found, in one copy, once it has computed all steps so far."""
        total, last, bad_at, bad = torch.stack((self._sum, self._last, self._bad_at, self._bad)).tolist()
        self._since = 0
        self._bad_at = torch.zeros_like(self._bad_at)
        return Reading(total, last, int(bad_at) - 1 if bad_at else None, bad)


class BatchSums:
    """Adds up figures of batches in all processes, and copies nothing from the device until `read`.

    The sums are exact but for the last rounding: no order, and no number of processes, gives others.
    """

    def __init__(self, device: str) -> None:
        self._dtype = widest_dtype(device)
        self._rows: list[Tensor] = []

    def add(self, *figures: Tensor) -> None:
        """Take the figures of a batch, scalars on the device, always as many."""
        self._rows.append(torch.stack([figure.detach().to(self._dtype) for figure in figures]))

    def read(self) -> list[float]:
        """Return the sum of each figure over the batches of all processes, which must ask together."""
        own: list[list[float]] = torch.stack(self._rows).tolist() if self._rows else []
        rows = [row for part in gather(own) for row in part]
        return [math.fsum(column) for column in zip(*rows, strict=True)]


class LogLines:
    """When to look at the loss: about once a second, and at first more often, until it is known how many steps that takes."""

    def __init__(self) -> None:
        self._next = self.steps = 1
        """How many steps there are to the next line."""
        self._since = time.perf_counter()

    def count(self) -> bool:
        """Count a step, and return whether its loss is to be looked at."""
        self._next -= 1
        return self._next <= 0

    def suggest(self) -> int:
        """Return after how many steps the next line should come, by how long those since the last one took."""
        seconds = time.perf_counter() - self._since
        taken = self.steps - max(0, self._next)
        wanted = math.inf if seconds <= 0 else taken * LINE_EVERY_S / seconds
        return max(1, int(min(wanted, _LARGEST_GROWTH * self.steps)))

    def begin(self, steps: int) -> None:
        """Let the next line come after so many steps."""
        self._next = self.steps = steps
        self._since = time.perf_counter()
