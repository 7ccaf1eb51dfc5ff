"""The search for the range whose grid loses least of the values seen, for any measure of that loss."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_deploy.quantization.levels import levels_of
from convnext_deploy.quantization.qparams import choose_qparams
from convnext_deploy.quantization.scheme import TensorScheme

_SHARES = F.pad(0.75 ** torch.arange(33, dtype=torch.float64), (0, 1))  # of an end of the range: 1 to 1/10000, and 0
_NEARER_SHARES = [0.75 ** (torch.linspace(-1, 1, 11, dtype=torch.float64) / 5**n) for n in range(3)]
_TIE = 1e-7  # losses nearer to each other than this may differ by rounding only
Loss = Callable[[Tensor, TensorScheme], Tensor]
"""Maps ranges `(M, 2)` and the grid to `(M,)`."""


def borders_of(ends: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return, for the grids of some ranges `(M, 2)`, the steps `(M, levels - 1)` and what bounds each level, `(M, levels + 1)`.

    The outermost borders are half a step beyond the ends: what lies outside is cut off, not rounded. All float64.
    """
    scale, zero_point = choose_qparams(ends[:, 0], ends[:, 1], scheme)
    levels = levels_of(scheme) - zero_point[:, None].double()
    steps = levels.diff(dim=1)
    first, last = levels[:, :1] - steps[:, :1] / 2, levels[:, -1:] + steps[:, -1:] / 2
    borders = torch.cat([first, levels[:, :-1] + steps / 2, last], 1)
    return steps * scale.double()[:, None], borders * scale.double()[:, None]


def least_loss(loss: Loss, low: float, high: float, scheme: TensorScheme) -> tuple[float, float]:
    """Return the range within [low, high] with the least loss, and of equally good ones the widest.

    Of an asymmetric grid both ends are searched, each with the other; of a symmetric one, the common magnitude: first over shares
    of the whole from 1 to 1/10000 and 0, then three times around the best, at last in steps of 0.2 %.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    whole = torch.tensor([low, high], dtype=torch.float64)
    if not scheme.smallest_scale < choose_qparams(whole[0], whole[1], scheme)[0] < math.inf:
        return low, high  # no narrower range has a finer grid, or float32 has none
    reach = torch.stack([-whole.abs().max(), whole.abs().max()]) if scheme.symmetric else whole
    best = torch.ones(2, dtype=torch.float64)
    for factors in (_SHARES, *_NEARER_SHARES):
        pairs = factors[:, None].expand(-1, 2) if scheme.symmetric else torch.cartesian_prod(factors, factors)
        shares = (best * pairs).clamp(max=1.0)
        losses = loss((reach * shares).clamp(min=whole[0], max=whole[1]), scheme)
        best = shares[int((losses <= losses.min() + _TIE).nonzero()[0])]
    ends = (reach * best).clamp(min=whole[0], max=whole[1])
    return ends[0].item(), ends[1].item()
