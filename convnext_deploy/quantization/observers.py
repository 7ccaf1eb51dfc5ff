"""Observers watch a tensor during calibration and tell the range that its grid must cover."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from convnext_deploy.quantization.scheme import TensorScheme

RANGE_METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy")
SMALLEST_SCALE = 1e-6  # a constant-zero tensor must still have a positive scale, also after a cast to FP16
_BINS = 2048  # on each side of zero
_VALUES_PER_BATCH = 1 << 16  # that the histogram counts; extremes are exact
_MOMENTUM = 0.1  # a calibration has about eight batches; with PyTorch's 0.01 the first one would be all that counts
_ENTROPY_STEPS = 128  # candidates of the range
_MSE_SHARES = torch.linspace(1.0, 0.1, 91, dtype=torch.float64)
_WEIGHT_SHARES = torch.linspace(1.0, 0.6, 41)


class Observer(Protocol):
    """One pass over the calibration images; memory does not grow with their number."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch of values."""


class ActivationObserver:
    """Sees one tensor in all batches and keeps what every way to choose its range needs.

    The extremes of every channel are exact. The histogram counts an evenly spaced sample of positions with all their channels, at
    most `_VALUES_PER_BATCH` values of a batch, from another first position each time.

    Attributes:
        channel_minimum: `(C,)` float32, least value seen in each channel; NaN once a NaN was seen there.
        channel_maximum: `(C,)` float32, likewise.
        seen: number of values.
    """

    def __init__(self, channel_dim: int) -> None:
        self.channel_dim = channel_dim
        self.channel_minimum = self.channel_maximum = torch.empty(0)
        self.seen = 0
        self._average: tuple[Tensor, Tensor] | None = None
        self._limit = 0.0  # of the histogram, a power of two; its bins go from -limit to limit
        self._counts = torch.zeros(2 * _BINS, dtype=torch.float64)
        self._batches = 0

    def observe(self, x: Tensor) -> None:
        """Take in one batch; channels are the dimension given."""
        rows = x.movedim(self.channel_dim, -1)
        dims = tuple(range(x.ndim - 1))
        low, high = rows.amin(dims).float(), rows.amax(dims).float()
        ends = low.amin(), high.amax()
        if self._average is None:
            self.channel_minimum, self.channel_maximum, self._average = low, high, ends
        else:
            # Tensor minimum and maximum keep NaN, the built-in ones lose it.
            self.channel_minimum = torch.minimum(self.channel_minimum, low)
            self.channel_maximum = torch.maximum(self.channel_maximum, high)
            self._average = tuple(a.lerp(b, _MOMENTUM) for a, b in zip(self._average, ends, strict=True))  # type: ignore[assignment]
        self.seen += x.numel()
        self._batches += 1
        largest = max(-ends[0].item(), ends[1].item())
        if math.isfinite(largest) and math.isfinite(self._limit):
            self._count(rows, largest)
        else:
            self._limit = math.nan

    def _count(self, rows: Tensor, largest: float) -> None:
        rows = rows.reshape(-1, rows.shape[-1])
        take = max(1, _VALUES_PER_BATCH // rows.shape[-1])
        if take < len(rows):
            places = torch.arange(take, device=rows.device) * len(rows) // take + 7919 * self._batches
            rows = rows[places % len(rows)]
        needed = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 0.0
        if needed > self._limit:
            self._widen(needed)
        if self._limit > 0:
            self._counts += torch.histc(rows.float().cpu(), bins=2 * _BINS, min=-self._limit, max=self._limit).double()
        else:
            self._counts[_BINS] += rows.numel()  # nothing but zeros so far; they stay in the bin after zero

    def _widen(self, limit: float) -> None:
        """Let the histogram reach to `limit`, by merging neighbouring bins, which keeps the counts exact."""
        merges = round(math.log2(limit / self._limit)) if self._limit > 0 else 0
        for _ in range(min(merges, 2 * _BINS.bit_length())):
            merged = self._counts.reshape(_BINS, 2).sum(dim=1)
            self._counts.zero_()
            self._counts[_BINS // 2 : _BINS + _BINS // 2] = merged
        self._limit = limit

    def value_range(self, method: str, scheme: TensorScheme, percentile: float = 99.99) -> tuple[float, float]:
        """Return the least and the greatest value that the grid is to represent, within what was seen; NaN if that had any.

        Args:
            method: `minmax`: everything seen. `moving_average`: of the extremes of the batches, newer ones count more.
                `percentile`: all but the same small fraction of values, by magnitude. `mse`: least squared error of the values,
                cut off ones included. `entropy`: least divergence of the distributions, see `_entropy_range`.
            scheme: the grid that will represent the range.
            percentile: of `percentile`, in (50, 100].
        """
        low, high = self.channel_minimum.min().item(), self.channel_maximum.max().item()
        if not (math.isfinite(low) and math.isfinite(high)) or method == "minmax" or low == high == 0:
            return low, high
        if method == "moving_average":
            assert self._average is not None  # something was seen
            return self._average[0].item(), self._average[1].item()
        chosen = {"percentile": self._percentile_range, "mse": self._mse_range, "entropy": self._entropy_range}[method]
        found = chosen(percentile) if method == "percentile" else chosen(scheme, low, high)  # type: ignore[operator]
        return max(low, found[0]), min(high, found[1])

    def _percentile_range(self, percentile: float) -> tuple[float, float]:
        if percentile >= 100:
            return -math.inf, math.inf
        by_magnitude = self._counts[_BINS:] + self._counts[:_BINS].flip(0)
        covered = by_magnitude.cumsum(0) / by_magnitude.sum()
        bound = self._limit * (int((covered < percentile / 100.0 - 1e-12).sum()) + 1) / _BINS
        return -bound, bound

    def _centres(self) -> Tensor:
        return (torch.arange(2 * _BINS, dtype=torch.float64) + 0.5 - _BINS) * (self._limit / _BINS)

    def _mse_range(self, scheme: TensorScheme, low: float, high: float) -> tuple[float, float]:
        lows, highs = _candidates(scheme, low, high, _MSE_SHARES)
        scales, zero_points = choose_qparams(lows, highs, scheme)
        occupied = self._counts.nonzero().flatten()
        values, counts = self._centres()[occupied].clamp(low, high), self._counts[occupied]
        scale, zero_point = scales.double()[:, None], zero_points.double()[:, None]
        steps = torch.round(values / scale).add_(zero_point).clamp_(scheme.quant_min, scheme.quant_max)
        errors = ((steps.sub_(zero_point).mul_(scale) - values).square_() * counts).sum(1)
        best = int(errors.argmin())
        return lows[best].item(), highs[best].item()

    def _entropy_range(self, scheme: TensorScheme, low: float, high: float) -> tuple[float, float]:
        """Return the range whose quantized distribution diverges least, in Kullback and Leibler's sense, from the one seen.

        P is the histogram within a candidate range, with what lies beyond in its end bins. Q is the same histogram in as many
        groups of bins as the grid has steps, without what lies beyond, each group spread evenly over its bins that are not empty.
        A symmetric grid has candidates around zero, an asymmetric one keeps an end that is nearer to zero.

        Source: Migacz 2017, "8-bit Inference with TensorRT", GTC 2017, session 7310.
        """
        lows, highs = _candidates(scheme, low, high, torch.linspace(1.0, 0.1, _ENTROPY_STEPS, dtype=torch.float64))
        width, levels = self._limit / _BINS, scheme.quant_max - scheme.quant_min + 1
        best = (math.inf, low, high)
        for start, end in zip(lows.tolist(), highs.tolist(), strict=True):
            first, last = math.floor(start / width) + _BINS, math.ceil(end / width) + _BINS
            first, last = max(0, first), min(2 * _BINS, max(last, first + 1))
            inner = self._counts[first:last]
            reference = inner.clone()
            reference[0] += self._counts[:first].sum()
            reference[-1] += self._counts[last:].sum()
            group = torch.arange(len(inner)) * min(levels, len(inner)) // len(inner)
            filled = (reference > 0).double()
            sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, inner)
            sizes = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, filled)
            candidate = (sums / sizes.clamp(min=1))[group] * filled
            divergence = _kl(reference, candidate)
            if divergence < best[0]:
                best = (divergence, start, end)
        return best[1], best[2]


def _kl(reference: Tensor, candidate: Tensor) -> float:
    """Return the divergence of two histograms in nats; an empty bin of the second where the first has something is nearly so."""
    if not candidate.sum() > 0:
        return math.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    where = p > 0
    return float((p[where] * (p[where] / q[where].clamp(min=1e-10)).log()).sum())


def _candidates(scheme: TensorScheme, low: float, high: float, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return narrower and narrower ranges, `(N,)` float64 lower and upper ends, the whole range first.

    Both ends of a symmetric grid move together. Of an asymmetric one, the end that is farther from zero moves to the nearer one
    first, because that is where the outliers are; then both do.
    """
    if scheme.symmetric:
        reach = max(-low, high) * shares
        return (-reach).clamp(min=min(low, 0.0)), reach.clamp(max=max(high, 0.0))
    reach = max(-low, high) * shares
    return torch.maximum(-reach, torch.tensor(min(low, 0.0), dtype=reach.dtype)), reach.clamp(max=max(high, 0.0))


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


def mse_weight_qparams(weight: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return scale and zero point with the least squared error of a weight `(N, ...)`, per output channel or for all of it.

    The scales compared are those that cover 100 % to 60 % of the extremes, in steps of a hundredth.
    """
    covering, zero_point = weight_qparams(weight, scheme)
    rows = weight.detach().flatten(1) if scheme.per_channel else weight.detach().reshape(1, -1)
    scales, zeros = covering.reshape(-1, 1), zero_point.reshape(-1, 1)
    best, least = scales.clone(), torch.full_like(scales, math.inf)
    for share in _WEIGHT_SHARES.tolist():
        candidate = (scales * share).clamp(min=SMALLEST_SCALE)
        steps = torch.round(rows / candidate).add_(zeros).clamp_(scheme.quant_min, scheme.quant_max)
        error = (steps.sub_(zeros).mul_(candidate) - rows).square_().sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, candidate, best), torch.where(better, error, least)
    return best.view_as(covering), zero_point
