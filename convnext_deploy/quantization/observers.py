"""Observers watch a tensor during calibration and tell the range that its grid must cover."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from convnext_deploy.quantization.scheme import TensorScheme

_BINS = 4096  # on each side of zero
_EXACT_IN_FLOAT32 = 1 << 24  # a histogram counts in float32, which is exact up to here
SMALLEST_SCALE = 1e-6  # a constant-zero tensor must still have a positive scale, also after a cast to FP16


class Observer(Protocol):
    """One pass over the calibration images; memory does not grow with their number."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch of values."""

    def value_range(self) -> tuple[float, float]:
        """Return the least and the greatest value that the grid must represent."""


class MinMaxObserver:
    """Covers everything seen."""

    def __init__(self) -> None:
        self.minimum, self.maximum = torch.tensor(math.inf), torch.tensor(-math.inf)

    def observe(self, x: Tensor) -> None:
        """See `Observer.observe`."""
        low, high = torch.aminmax(x.float())
        # Tensor minimum and maximum keep NaN, the built-in ones lose it.
        self.minimum, self.maximum = torch.minimum(self.minimum, low.cpu()), torch.maximum(self.maximum, high.cpu())

    def value_range(self) -> tuple[float, float]:
        """See `Observer.value_range`."""
        return self.minimum.item(), self.maximum.item()


class PercentileObserver:
    """Leaves out the same small fraction of values, `1 - percentile / 100`, by magnitude.

    Values are counted in a histogram over [-limit, limit]; when a batch goes beyond, the limit doubles and neighbouring bins
    merge, so earlier counts stay exact and memory is constant. The range found is at most one bin wider than the exact one.
    """

    def __init__(self, percentile: float) -> None:
        self.percentile = percentile
        self.limit = 0.0
        self.counts = torch.zeros(2 * _BINS, dtype=torch.float64)
        self.zeros = 0  # values seen while nothing but zeros had been seen, so that no bin width was known

    def observe(self, x: Tensor) -> None:
        """See `Observer.observe`."""
        largest = x.abs().max().item()
        if not math.isfinite(largest) or not math.isfinite(self.limit):
            self.limit = math.nan  # what is not finite once has no range any more
            return
        if self.limit == 0.0:
            self.zeros += x.numel() if largest == 0 else 0
            self.limit = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 0.0
        if self.limit == 0.0:
            return
        while largest > self.limit:
            merged = self.counts.reshape(_BINS, 2).sum(dim=1)
            self.counts.zero_()
            self.counts[_BINS // 2 : _BINS + _BINS // 2] = merged
            self.limit *= 2.0
        for part in x.detach().float().cpu().flatten().split(_EXACT_IN_FLOAT32):
            self.counts += torch.histc(part, bins=2 * _BINS, min=-self.limit, max=self.limit).double()

    def value_range(self) -> tuple[float, float]:
        """See `Observer.value_range`."""
        if self.limit == 0.0 or math.isnan(self.limit):
            return self.limit, self.limit
        counts = self.counts.clone()
        counts[_BINS] += self.zeros
        by_magnitude = counts[_BINS:] + counts[:_BINS].flip(0)
        covered = by_magnitude.cumsum(0) / by_magnitude.sum()
        bound = self.limit * (int((covered < self.percentile / 100.0 - 1e-12).sum()) + 1) / _BINS
        occupied = counts.nonzero()
        width = self.limit / _BINS
        low = -self.limit + width * int(occupied[0])
        high = -self.limit + width * (int(occupied[-1]) + 1)
        return max(low, -bound), min(high, bound)


def choose_qparams(low: Tensor, high: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return the scale (float32, > 0) and zero point (int32) of the grid that covers [low, high] and represents 0 exactly.

    Args:
        low: `()` per tensor or `(N,)` per channel.
        high: same shape.
        scheme: the grid.
    """
    low, high = low.clamp(max=0.0).float(), high.clamp(min=0.0).float()
    if scheme.symmetric:
        scale = (torch.maximum(-low, high) / scheme.quant_max).clamp(min=SMALLEST_SCALE)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (scheme.quant_max - scheme.quant_min)).clamp(min=SMALLEST_SCALE)
    zero_point = (scheme.quant_min - torch.round(low / scale)).clamp(scheme.quant_min, scheme.quant_max)
    return scale, zero_point.to(torch.int32)


def weight_qparams(weight: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return scale and zero point that cover a weight `(N, ...)`, per output channel or for the whole tensor."""
    rows = weight.detach().flatten(1) if scheme.per_channel else weight.detach().reshape(1, -1)
    low, high = torch.aminmax(rows, dim=1)
    scale, zero_point = choose_qparams(low, high, scheme)
    return (scale, zero_point) if scheme.per_channel else (scale[0], zero_point[0])
