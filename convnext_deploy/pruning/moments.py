"""Means and covariances of a block's hidden units and of what its second linear layer should give, over many positions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext_deploy.models.convnext import Block
from convnext_deploy.models.layers import ACTIVATIONS
from convnext_deploy.pruning.elimination import damped

_LEAST_POSITIONS = 16384
_POSITIONS_PER_UNIT = 16  # more tell hardly more, and take time in the first model stages
_DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Moments:
    """First and second moments, float64: `h` the units `(M,)`, `t` the targets `(C,)`, of all channels or of as many as there are.

    `hh` `(M, M)` and `th` `(C, M)` are covariances, `tt` `(C,)` variances.
    """

    count: int
    h: Tensor
    t: Tensor
    hh: Tensor
    th: Tensor
    tt: Tensor


def gather(parts: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Return the moments of pairs of units `(n, M)` and targets `(n, C)`, at least one."""
    count, sums = 0, None
    for units, targets in parts:
        own = (units.sum(0), targets.sum(0), units.T @ units, targets.T @ units, targets.square().sum(0))
        wide = [each.to("cpu", torch.float64) for each in own]
        sums = wide if sums is None else [a.add_(b) for a, b in zip(sums, wide, strict=True)]
        count += len(units)
    assert sums is not None
    h, t, hh, th, tt = (each / count for each in sums)
    return Moments(count, h, t, hh - torch.outer(h, h), th - torch.outer(t, h), (tt - t.square()).clamp(min=0))


def joined(one: Moments, other: Moments) -> Moments:
    """Return the moments of both sets together."""
    count = one.count + other.count
    a, b = one.count / count, other.count / count
    dh, dt = other.h - one.h, other.t - one.t
    return Moments(
        count,
        a * one.h + b * other.h,
        a * one.t + b * other.t,
        a * one.hh + b * other.hh + a * b * torch.outer(dh, dh),
        a * one.th + b * other.th + a * b * torch.outer(dt, dh),
        a * one.tt + b * other.tt + a * b * dt.square(),
    )


def selected(moments: Moments, units: Tensor) -> Moments:
    """Return the moments of some of the units."""
    return Moments(
        moments.count, moments.h[units], moments.t, moments.hh[units][:, units], moments.th[:, units], moments.tt
    )


def solve(moments: Moments, prior: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return weights `(C, M)` and biases `(C,)` that give the targets with the least squared error.

    The weights are drawn to the `prior` by as much as the damping says: infinite leaves them there.
    """
    weight = prior
    if damping < float("inf") and len(moments.h):
        missing = moments.th - prior @ moments.hh
        weight = prior + torch.linalg.solve(damped(moments.hh, damping), missing.T).T
    return weight, moments.t - weight @ moments.h


def squared_error(moments: Moments, weight: Tensor, bias: Tensor) -> float:
    """Return the mean squared error of a linear layer, summed over the outputs."""
    spread = moments.tt - 2 * (weight * moments.th).sum(1) + ((weight @ moments.hh) * weight).sum(1)
    return (spread.clamp(min=0) + (moments.t - weight @ moments.h - bias).square()).sum().item()


def fit(halves: Sequence[Moments], prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and biases for both halves of the data, damped so that those of each half suit the other best."""

    def across(damping: float) -> float:
        pairs = ((halves[0], halves[1]), (halves[1], halves[0]))
        return sum(squared_error(other, *solve(own, prior, damping)) for own, other in pairs)

    best = min((*_DAMPINGS, float("inf")), key=across)
    return solve(joined(*halves), prior, best)


def hidden_units(block: Block, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the input of a block's second linear layer, `(N, H, W, M)`, and the sums over images of GRN's norms, `(M,)`.

    The second is None without GRN. `x` is the block's input, `(N, H, W, C)`.
    """
    active = ACTIVATIONS[block.activation](block.pwconv1(block.before_mlp(x)))
    if block.grn is None:
        return active, None
    return block.grn(active), torch.linalg.vector_norm(active, dim=(1, 2)).sum(0)


def positions_of(shape: Sequence[int], images: int, units: int, generator: torch.Generator) -> Tensor:
    """Choose positions of maps `(n, H, W)` so that of `images` such maps there are enough for covariances of so many units."""
    number, side = shape[0], shape[1] * shape[2]
    wanted = max(_LEAST_POSITIONS, _POSITIONS_PER_UNIT * units)
    each = min(side, -(-wanted // max(1, images)))
    if each == side:
        return torch.arange(number * side)
    picked = torch.rand(number, side, generator=generator).argsort(1)[:, :each]
    return (picked + side * torch.arange(number)[:, None]).flatten()
