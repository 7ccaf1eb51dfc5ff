"""The levels of a grid, integers or the numbers of FP8 E4M3, and rounding to the nearest of them."""

import torch
from torch import Tensor

from convnext_deploy.quantization.scheme import TensorScheme

_SMALLEST_NORMAL = 2.0**-6  # of E4M3; below, numbers are multiples of 2^-9
_LARGEST = 2.0**20  # beyond all levels, and finite where it is multiplied
_EXPONENT_BITS = 0x7F800000  # of float32
_TO_THREE_BITS = 1.5 * 2.0**20  # times the power of two below a number: float32 has three more bits of a sum with it


def round_to_level(values: Tensor, scheme: TensorScheme, out: Tensor | None = None) -> Tensor:
    """Return the level nearest to each value, and of two the even one, in float32; ends do not count yet.

    Args:
        values: in units of the scale.
        scheme: whose levels.
        out: takes the result, and may be `values`, which are float32 then; None: a new tensor does.
    """
    if not scheme.floating:
        return torch.round(values, out=out)
    # A sum with so large a number is rounded to the last bit of three, half to even. Unlike a cast it is as fast as torch.round,
    # goes on beyond the ends, and runs where a device has no FP8.
    values = values.float()
    powers = (values.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    large = powers.clamp_(_SMALLEST_NORMAL, _LARGEST).mul_(_TO_THREE_BITS)
    return torch.add(values, large, out=out).sub_(large)


def levels_of(scheme: TensorScheme) -> Tensor:
    """Return all levels from `quant_min` to `quant_max`, in order, `(levels,)` float64."""
    if not scheme.floating:
        return torch.arange(scheme.quant_min, scheme.quant_max + 1, dtype=torch.float64)
    positive = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()  # 127 is NaN
    return torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])
