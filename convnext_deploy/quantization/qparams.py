"""From a range to a scale and zero point; and of weights, whose values are all there, the scale with the least squared error."""

import math

import torch
from torch import Tensor

from convnext_deploy.quantization.levels import round_to_level
from convnext_deploy.quantization.scheme import TensorScheme

_WEIGHT_CANDIDATES = 32
_VALUES_IN_CACHE = 1 << 18  # 1 MiB


def choose_qparams(low: Tensor, high: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return the scale (float32, > 0) and zero point (int32) of the grid that covers [low, high] and represents 0 exactly.

    Args:
        low: `()` per tensor or `(N,)` per channel.
        high: same shape.
        scheme: the grid.
    """
    low, high = low.clamp(max=0.0).float(), high.clamp(min=0.0).float()
    if scheme.symmetric:
        middle = (scheme.quant_min + scheme.quant_max + 1) // 2
        scale = (torch.maximum(-low, high) / (scheme.quant_max - middle)).clamp(min=scheme.smallest_scale)
        return scale, torch.full_like(scale, middle, dtype=torch.int32)
    scale = ((high - low) / (scheme.quant_max - scheme.quant_min)).clamp(min=scheme.smallest_scale)
    zero_point = (scheme.quant_min - torch.round(low / scale)).clamp(scheme.quant_min, scheme.quant_max)
    return scale, zero_point.to(torch.int32)


def weight_qparams(weight: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return scale and zero point that cover a weight `(N, ...)`, per output channel or for the whole tensor."""
    rows = weight.detach().flatten(1) if scheme.per_channel else weight.detach().reshape(1, -1)
    low, high = torch.aminmax(rows, dim=1)
    scale, zero_point = choose_qparams(low, high, scheme)
    return (scale, zero_point) if scheme.per_channel else (scale[0], zero_point[0])


@torch.no_grad()
def mse_weight_qparams(weight: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return scale and zero point with the least squared error of a weight `(N, ...)`, per output channel or for all of it.

    Compared are shares of the scale that covers everything, which is the first. With it no value is off by more than half a step,
    so that `K` values lose at most `K / 4` squared steps; a share at which the largest magnitude alone loses more cannot be best,
    and none below is tried. (For one scale of the whole weight `K` is its size, and 0.1 the least share. A floating grid has
    the same levels again at half the scale, so that 0.5 is the least there.)

    Returns: scale `(N,)` or `()` float32 and zero point, the same shape, int32; on the weight's device.
    """
    covering, zero_point = weight_qparams(weight, scheme)
    rows = weight.flatten(1).float()
    count = rows.shape[1] if scheme.per_channel else rows.numel()
    least = 1 - (math.sqrt(count) / 2 + 1) * scheme.last_step / ((scheme.quant_max - scheme.quant_min) // 2)
    least = max(0.5 if scheme.floating else 0.1, least)
    shares = torch.linspace(1.0, least, _WEIGHT_CANDIDATES, device=rows.device)
    candidates = (covering.reshape(-1, 1) * shares).clamp(min=scheme.smallest_scale)  # (N or 1, candidates)
    scales, zeros = candidates.expand(len(rows), -1), zero_point.reshape(-1, 1).expand(len(rows), -1)
    size, errors = max(1, _VALUES_IN_CACHE // _WEIGHT_CANDIDATES // rows.shape[1]), []
    for part, scale, zero in zip(rows.split(size), scales.split(size), zeros.split(size), strict=True):
        steps = part[:, None] / scale[..., None]  # (n, candidates, K)
        off = round_to_level(steps, scheme).add_(zero[..., None]).clamp_(scheme.quant_min, scheme.quant_max)
        off.sub_(zero[..., None]).sub_(steps)
        errors.append(off.square_().sum(2).double() * scale.double().square())  # squares of 1e30 would overflow float32
    total = torch.cat(errors) if scheme.per_channel else torch.cat(errors).sum(0, keepdim=True)
    return candidates.gather(1, total.argmin(1, keepdim=True)).view_as(covering), zero_point
