"""Observers, which watch a tensor during calibration and choose the range that its grid must cover."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_deploy.quantization.range_search import borders_of, least_loss
from convnext_deploy.quantization.scheme import TensorScheme

RANGE_METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy")
WITHOUT_HISTOGRAM = ("minmax", "moving_average")
_BINS = 4096  # on each side of zero: 8 to 16 for each step of a grid of 256 that covers everything
_SMALLEST_EXPONENT = -100  # of the histogram's limit, so that bins per unit still fit float32
_SAMPLED_VALUES, _SAMPLED_OF_ITEM = 1 << 17, 1 << 14  # of a batch and of each image in it; counting 2^17 takes 0.4 ms
_VALUES_IN_CACHE = 1 << 18  # 1 MiB: a second pass over as many finds them there, which saves a third of the time
_GOLDEN = (math.sqrt(5) - 1) / 2
_MOMENTUM = 0.2  # over eight batches the first (0.8^7 = 0.21) counts like the last; PyTorch's 0.01 would leave it 0.93
_UNSEEN = 1e-4  # of a value, where the quantized distribution has none, as in ONNX Runtime's smooth_distribution


class Observer(Protocol):
    """One pass over the calibration images; memory does not grow with their number."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch of values."""


class ActivationObserver:
    """Sees one tensor in all batches, in constant memory, and keeps what every way to choose its range needs.

    The extremes of every channel are exact. The histogram has 4096 bins on each side of zero, up to a limit that doubles as needed
    and is above every magnitude seen. It counts a sample of each batch: whole positions with all their channels, at most 2^17
    values and 2^14 of an image, one position out of each of equally long stretches. Where in its stretch follows multiples of the
    golden ratio and differs from batch to batch, by their numbers; so the same batches give the same result, also where several
    observers see some each and are joined, and no row or column of pixels is preferred. A batch counts by its size, not by that of
    its sample.

    Attributes:
        channel_minimum: `(C,)` float32 on the tensor's device, least value seen in each channel; NaN once one was seen there.
        channel_maximum: the same for the greatest value.
        seen: number of values.
    """

    def __init__(self, channel_dim: int, *, histogram: bool = True, is_alone: bool = True) -> None:
        """Be an observer of all batches, or of some that will be joined with others.

        Args:
            channel_dim: -1 for `(..., C)`, 1 for `(N, C, H, W)`.
            histogram: whether to count values, for `value_range`.
            is_alone: it sees all batches, one after the other; otherwise it keeps a few numbers of each.
        """
        self.channel_dim, self.histogram = channel_dim, histogram
        self.channel_minimum = self.channel_maximum = torch.empty(0)
        self.seen = 0
        self._number = 0
        self._average: list[float] = []
        self._ends: dict[int, list[float]] | None = None if is_alone else {}  # the extremes of each batch
        self._exponent = _SMALLEST_EXPONENT  # the histogram goes from -2^exponent to 2^exponent
        self._tallies: dict[
            float, Tensor
        ] = {}  # for how many values each counted one stands → counts, which are added exactly

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take in one batch of any floating dtype; float64 values count as the float32 that is nearest."""
        if x.numel() == 0:
            return
        rows = torch.atleast_2d(x.movedim(self.channel_dim, -1))
        low, high = _channel_extremes(rows)
        ends = torch.stack([low.amin(), high.amax()]).tolist()
        self._reach(low, high)
        self.seen += x.numel()
        if self._ends is None:
            self._average = _averaged(self._average, ends)
        else:
            self._ends[self._number] = ends
        self._number += 1
        # where values are not finite the channels say so, and the histogram is not read
        if self.histogram and math.isfinite(ends[0]) and math.isfinite(ends[1]):
            self._widen(_exponent(max(-ends[0], ends[1])))
            self._count(rows)

    def skip_to(self, number: int) -> None:
        """Let the next batch be the one with this number, from 0."""
        self._number = number

    def join(self, other: "ActivationObserver") -> None:
        """Take in what another observer saw of the same tensor in other batches, which is used up; neither `is_alone`."""
        assert self._ends is not None and other._ends is not None  # noqa: PT018
        if not other.seen:
            return
        self._reach(other.channel_minimum, other.channel_maximum)
        self.seen += other.seen
        self._ends |= other._ends
        exponent = max(self._exponent, other._exponent)
        for each in (self, other):
            each._widen(exponent)
        for weight, counted in other._tallies.items():
            self._tallies[weight] = self._tallies.get(weight, 0) + counted

    def _reach(self, low: Tensor, high: Tensor) -> None:
        """Take in extremes of the channels, before `seen` grows."""
        if not self.seen:
            self.channel_minimum, self.channel_maximum = low, high
        else:
            # Tensor minimum and maximum keep NaN; the built-in ones would lose it.
            self.channel_minimum = torch.minimum(self.channel_minimum, low)
            self.channel_maximum = torch.maximum(self.channel_maximum, high)

    def _count(self, rows: Tensor) -> None:
        """Count a sample of `(..., C)`."""
        positions = rows.shape[:-1].numel()
        values = min(_SAMPLED_VALUES, len(rows) * _SAMPLED_OF_ITEM)
        take = min(positions, max(1, values // rows.shape[-1]))
        if take < positions:
            index = torch.arange(take, dtype=torch.float64)
            within = ((index + math.sqrt(2) * self._number) * _GOLDEN).frac_()
            places = (index + within).mul_(positions / take).long().clamp_(max=positions - 1)
            rows = rows[torch.unravel_index(places.to(rows.device), rows.shape[:-1])]
        # Bins per unit are a power of two and all magnitudes are below the limit: exact in float32, and no index is outside.
        bins = rows.flatten().float().mul(1 / self._width).floor_().add_(_BINS).int().cpu()
        weight = positions / take
        self._tallies[weight] = self._tallies.get(weight, 0) + torch.bincount(bins, minlength=2 * _BINS)

    def _widen(self, exponent: int) -> None:
        """Let the histogram reach to a power of two by merging neighbouring bins, which keeps the counts exact."""
        exponent = max(self._exponent, exponent)
        merges = min(exponent - self._exponent, _BINS.bit_length())  # after so many all is in the two bins around zero
        for counted in self._tallies.values():
            for _ in range(merges):
                merged = counted.view(_BINS, 2).sum(dim=1)
                counted.zero_()[_BINS // 2 : _BINS + _BINS // 2] = merged
        self._exponent = exponent

    @property
    def _counts(self) -> Tensor:
        """How many values are in each bin, `(2 * _BINS,)` float64: sums of shares, always in the same order."""
        whole = torch.zeros(2 * _BINS, dtype=torch.float64)
        for weight in sorted(self._tallies):
            whole += self._tallies[weight].double().mul_(weight)
        return whole

    @property
    def _width(self) -> float:
        return 2.0**self._exponent / _BINS

    def value_range(self, method: str, scheme: TensorScheme, percentile: float = 99.99) -> tuple[float, float]:
        """Return the least and the greatest value that the grid is to represent; never outside the extremes.

        Values that were not finite make it not finite, and so does having seen none (NaN); the caller has to refuse it.

        Args:
            method: in `RANGE_METHODS`. `minmax`: everything seen. `moving_average`: exponential moving average of the extremes of
                the batches, from the first one on, with momentum 0.2. `percentile`: all but a fraction of the values, by
                magnitude. `mse`: least squared error of the values on their grid, cut off ones included.
                `entropy`: least divergence of the quantized distribution.
            scheme: the grid, per tensor.
            percentile: of `percentile`, in (0, 100].

        Raises: ValueError: if there is no such method, or it needs the histogram that was not kept.
        """
        if method not in (RANGE_METHODS if self.histogram else WITHOUT_HISTOGRAM):
            raise ValueError(f"unknown range method '{method}'" + ("" if self.histogram else " without a histogram"))
        if not self.seen:
            return math.nan, math.nan
        low, high = torch.stack([self.channel_minimum.amin(), self.channel_maximum.amax()]).tolist()
        found = -math.inf, math.inf
        if math.isfinite(low) and math.isfinite(high):
            if method == "moving_average":
                average = self._average
                for number in sorted(self._ends or ()):
                    average = _averaged(average, (self._ends or {})[number])
                found = average[0], average[1]
            elif method == "percentile" and percentile < 100:
                found = self._percentile_range(percentile)
            elif method == "mse":
                found = least_loss(self._squared_errors, low, high, scheme)
            elif method == "entropy":
                found = least_loss(self._divergences, low, high, scheme)
        return max(low, found[0]), min(high, found[1])

    def _percentile_range(self, percentile: float) -> tuple[float, float]:
        counts = self._counts
        by_magnitude = counts[_BINS:] + counts[:_BINS].flip(0)
        covered = by_magnitude.cumsum(0) / by_magnitude.sum()
        # Shares are sums of fractions; one that is reached must not be missed by rounding.
        bound = self._width * (int((covered < percentile / 100.0 - 1e-12).sum()) + 1)
        return -bound, bound

    def _squared_errors(self, ends: Tensor, scheme: TensorScheme) -> Tensor:
        """Return the mean squared error of the values on the grids of some ranges, `(M,)` float64, in squared widths of a bin.

        Values are taken as spread evenly over their bin. With `f` their density, `top` the last of the levels, `b` half-way between
        two neighbours and `step` between these, the sum over levels of `integral (level - x)^2 f(x) dx`, each over what rounds
        to that level, is `integral (top - x)^2 f(x) dx - 2 sum_b step G(b)` with `G(b) = integral_{x < b} (b - x) f(x) dx`. So a
        range costs as many look-ups in the table of `G` as the grid has levels, however many bins there are.

        Args: ends: `(M, 2)` float64, lower and upper. scheme: the grid.
        """
        steps, borders = borders_of(ends, scheme)
        steps, borders = steps / self._width, borders / self._width + _BINS
        top = borders[:, -1] - steps[:, -1] / 2
        counts = self._counts
        density = counts / counts.sum()
        below = F.pad(density.cumsum(0), (1, 0))  # at the edges of the bins
        table = F.pad((below[:-1] + density / 2).cumsum(0), (1, 0))
        centres = torch.arange(2 * _BINS, dtype=torch.float64) + 0.5
        mean, square = (density * centres).sum(), (density * (centres.square() + 1 / 12)).sum()
        borders = borders[:, 1:-1].clamp(min=0)
        edge = borders.long().clamp_(max=2 * _BINS)
        beyond = borders - edge
        total = table[edge] + beyond * (below[edge] + beyond * F.pad(density, (0, 1))[edge] / 2)
        return square - 2 * top * mean + top.square() - 2 * (steps * total).sum(1)

    def _divergences(self, ends: Tensor, scheme: TensorScheme) -> Tensor:
        """Return the divergence KL(P || Q) in nats of the quantized values of some ranges from the values seen, `(M,)` float64.

        P is the histogram of both signs, over the bins whose centre rounds to a level of the grid without being cut off; what lies
        beyond is added to the first or the last of them. Q is the same without what lies beyond, in one group per level: the bins
        that round to it. Each group is spread evenly over its bins that are not empty in P; the one bin where that leaves none
        though P has some gets 0.0001 of a value. So the groups are the steps of the very grid, symmetric or not, with zero on it; a
        symmetric one has them on the empty side of one-sided values as well, where they hold nothing and cost nothing. So have
        levels of a floating grid between which there is no bin. A grid that is finer than the bins everywhere could not be told
        from the values, and has an infinite divergence.

        Source: Migacz 2017, "8-bit Inference with TensorRT", GTC 2017, session 7310, for magnitudes and 128 levels.

        Args: ends: `(M, 2)` float64, lower and upper. scheme: the grid.
        """
        steps, borders = borders_of(ends, scheme)
        # of each group the first bin, by its centre, and after the last group the first bin that is cut off
        edges = (borders / self._width + (_BINS - 0.5)).ceil_().clamp_(0, 2 * _BINS).long()
        counts = self._counts
        below, filled, entropy = (
            F.pad(each.cumsum(0), (1, 0)) for each in (counts, (counts > 0).double(), torch.xlogy(counts, counts))
        )
        total, size = below[-1], filled[edges].diff(dim=1)
        inner = below[edges].diff(dim=1)  # exactly 0 over empty bins: cumulative sums are constant there
        outer, own = inner.clone(), entropy[edges[:, -1]] - entropy[edges[:, 0]]
        first, last = edges[:, 0], edges[:, -1] - 1
        for group, place, cut in (0, first, below[first]), (-1, last, total - below[last + 1]):
            at_end = counts[place]
            own += torch.xlogy(at_end + cut, at_end + cut) - torch.xlogy(at_end, at_end)
            outer[:, group] += cut
            size[:, group] += (at_end == 0) & (cut > 0)
        inner = torch.where((inner == 0) & (outer > 0), _UNSEEN, inner)
        cross = torch.xlogy(outer, inner / size.clamp(min=1)).sum(1) - total * inner.sum(1).log()
        return ((own - total * total.log() - cross) / total).masked_fill(steps.amax(1) < self._width, math.inf)


def _averaged(average: list[float], ends: list[float]) -> list[float]:
    """Return the moving average of the extremes of batches after one more; of none it is empty."""
    return [old + _MOMENTUM * (new - old) for old, new in zip(average, ends, strict=True)] if average else ends


def _exponent(largest: float) -> int:
    """Return the least power of two above a magnitude, which math.frexp has 0 at 2^0."""
    return math.frexp(largest)[1] if largest else _SMALLEST_EXPONENT


def _channel_extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value of each channel of `(..., C)`, `(C,)` float32; NaN where there is one."""
    dims = tuple(range(rows.ndim - 1))
    parts = rows.split(max(1, _VALUES_IN_CACHE // rows[0].numel())) if rows.is_cpu else (rows,)
    low, high = zip(*((part.amin(dims), part.amax(dims)) for part in parts), strict=True)
    return torch.stack(low).amin(0).float(), torch.stack(high).amax(0).float()
