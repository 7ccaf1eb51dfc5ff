"""Fake quantization: round to the grid and come back, with gradients for weights, inputs and scales."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from convnext_deploy.quantization.levels import round_to_level
from convnext_deploy.quantization.observers import Observer
from convnext_deploy.quantization.scheme import TensorScheme

INT32_MAX = 2**31 - 128  # the largest float32 that int32 holds
_VALUES_IN_CACHE = 1 << 16  # 256 KiB in each of up to six tensors


class _LearnedGrid(torch.autograd.Function):
    """Forward: quantize-dequantize. Backward: straight-through for `x`; learned step size and offset for scale and zero point.

    With `v = x / scale + zero_point`, the derivative to `scale` is `round(v) - v` inside the grid and
    `clamp(v) - zero_point` outside; the derivative to `zero_point` is 0 inside and `-scale` outside. `round` goes to the nearest
    level, integer or float.

    Sources: Esser et al. 2020, arXiv 1902.08153, equation 3; Bhalgat et al. 2020, arXiv 2004.09576, equations 4 and 5, whose
    offset is `-scale * zero_point` here, so that 0 stays on the grid and the exported graph computes the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: TensorScheme) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.scheme = scheme
        result = torch.empty_like(x)
        for part, steps, zero, found in _in_parts(scale, zero_point, x, result):
            torch.div(part, steps, out=found)
            round_to_level(found, scheme, out=found).add_(zero).clamp_(scheme.quant_min, scheme.quant_max)
            found.sub_(zero).mul_(steps)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        scheme: TensorScheme = ctx.scheme
        by_x, step = torch.empty_like(x), torch.empty_like(x)
        gradient = gradients[0] if gradients[0].stride() == x.stride() else torch.empty_like(x).copy_(gradients[0])
        beyond = torch.empty_like(x) if ctx.needs_input_grad[2] else None
        tensors = (x, gradient, by_x, step, *(() if beyond is None else (beyond,)))
        for part, steps, zero, slope, passed, change, *cut in _in_parts(scale, zero_point, *tensors):
            ratio = part / steps
            rounded = round_to_level(ratio, scheme).add_(zero)
            torch.clamp(rounded, scheme.quant_min, scheme.quant_max, out=change)
            inside = change == rounded
            change.sub_(zero).sub_(ratio.mul_(inside)).mul_(slope)
            torch.mul(slope, inside, out=passed)
            if cut:
                torch.sub(passed, slope, out=cut[0])
        by_zero_point = None if beyond is None else _sum_as(beyond, scale) * scale
        return by_x, _sum_as(step, scale), by_zero_point, None


def _in_parts(scale: Tensor, zero_point: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield parts of some tensors of one shape: that of the first, its scale and zero point, those of the others.

    On a CPU they are so small that every pass over a part but the first finds it in the cache. Values of one place of the tensors
    are in one place of the parts, in whatever order.
    """
    first = tensors[0]
    alike = all(tensor.stride() == first.stride() for tensor in tensors)
    if not first.is_cpu or not alike or first.numel() <= _VALUES_IN_CACHE or torch.compiler.is_compiling():
        yield first, scale, zero_point, *tensors[1:]
    elif scale.ndim:
        rows = max(1, _VALUES_IN_CACHE // first[0].numel())
        split = [tensor.split(rows) for tensor in (first, scale, zero_point, *tensors[1:])]
        yield from zip(*split, strict=True)
    elif (flat := [_in_order_of_memory(tensor) for tensor in tensors])[0] is not None:
        for parts in zip(*(tensor.split(_VALUES_IN_CACHE) for tensor in flat if tensor is not None), strict=True):
            yield parts[0], scale, zero_point, *parts[1:]
    else:
        yield first, scale, zero_point, *tensors[1:]


def _in_order_of_memory(x: Tensor) -> Tensor | None:
    """Return a view of all values of a tensor, `(numel,)`; None: they do not lie side by side."""
    strides = x.stride()
    ordered = x.permute(sorted(range(x.ndim), key=strides.__getitem__, reverse=True))
    return ordered.view(-1) if ordered.is_contiguous() else None


def _sum_as(values: Tensor, qparam: Tensor) -> Tensor:
    """Sum over all that shares a scale: everything, or each row."""
    return values.flatten(1).sum(1).view_as(qparam) if qparam.ndim else values.sum()


class _RoundIntoGrid(torch.autograd.Function):
    """Round and clamp, with the derivative 1, except to a value beyond an end that descent would take further out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = (low, high)
        return torch.round(x).clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (x,) = ctx.saved_tensors
        low, high = ctx.ends
        outwards = ((x < low) & (gradient > 0)) | ((x > high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: TensorScheme) -> Tensor:
    """Return the levels of `x` as float32: round half to even, then saturate, as ONNX's QuantizeLinear does."""
    scale, zero_point = spread(scale, x), spread(zero_point, x)
    return round_to_level(x / scale, scheme).add_(zero_point).clamp_(scheme.quant_min, scheme.quant_max)


def spread(qparam: Tensor, x: Tensor) -> Tensor:
    return qparam.view(-1, *[1] * (x.ndim - 1)) if qparam.ndim else qparam


class _RoundToMultiples(torch.autograd.Function):
    """Round to multiples of a step, with the derivative 1 to `x` and none to the step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        return torch.round(x / step).clamp_(-INT32_MAX, INT32_MAX).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


def round_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """Return a bias as the accumulator of an integer product holds it: multiples of `input_scale * weight_scale` in int32.

    Args:
        bias: `(channels,)` float32.
        input_scale: `()`.
        weight_scale: `(channels,)` or `()`.
    """
    rounded: Tensor = _RoundToMultiples.apply(bias.float(), (input_scale * weight_scale).detach())
    return rounded


class FakeQuantize(nn.Module):
    """A quantizer site: float before calibration, on its grid after `freeze`.

    The scale is learned as its logarithm: Adam moves every parameter by about its learning rate whatever the gradient's size, and
    only in the logarithm is that the same relative change for every scale. It also keeps the scale positive. For the same reason
    the zero point of an asymmetric grid is learned as a shift in widths of the grid: both move the range alike.
    Source: Jain et al. 2020, arXiv 1903.08066, section 3 and appendix B.

    Attributes:
        log2_scale: parameter, `()` or `(channels, )` float32.
        zero_point: buffer, same shape, int32, as `freeze` fixed it; `qparams` says what it has become.
        zero_point_shift: parameter, same shape, float32, what training added in units of `quant_max - quant_min`; None where the
            grid is symmetric.
        enabled: False makes it the identity, so that the float model shows through exactly.
        observer: while set, inputs are observed and pass unchanged.
    """

    def __init__(self, scheme: TensorScheme, channels: int | None, channel_dim: int = 0) -> None:
        """Args: channel_dim: which dimension has a scale for each of its `channels`; `channels` None: one for all."""
        super().__init__()
        shape = (channels,) if channels is not None else ()
        self.channel_dim = channel_dim
        self.scheme = scheme
        self.log2_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        self.zero_point: Tensor
        self.zero_point_shift = None if scheme.symmetric else nn.Parameter(torch.zeros(shape))
        self.enabled = True
        self.observer: Observer | None = None

    @property
    def scale(self) -> Tensor:
        """Width of a step of the grid, `()` or `(channels,)` float32, > 0."""
        return torch.exp2(self.log2_scale)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Return the scale and the zero point that `forward` computes with, both `()` or `(channels,)`.

        The zero point is int32 where it is fixed; where it is learned, it is float32, a whole number within the grid, and carries
        gradients.
        """
        if self.zero_point_shift is None:
            return self.scale, self.zero_point
        low, high = self.scheme.quant_min, self.scheme.quant_max
        moved = self.zero_point + self.zero_point_shift * (high - low)
        return self.scale, _RoundIntoGrid.apply(moved, low, high)

    @torch.no_grad()
    def freeze(self, scale: Tensor, zero_point: Tensor) -> None:
        """Fix the grid."""
        self.log2_scale.copy_(torch.log2(scale))
        self.zero_point.copy_(zero_point)
        if self.zero_point_shift is not None:
            self.zero_point_shift.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid, in float32 whatever the autocast dtype: a grid of 256 levels needs more than bfloat16."""
        if self.observer is not None:
            self.observer.observe(x.detach())
            return x
        if not self.enabled:
            return x
        scale, zero_point = self.qparams()
        first = x.float().transpose(0, self.channel_dim) if scale.ndim and self.channel_dim else x.float()
        result: Tensor = _LearnedGrid.apply(first, spread(scale, first), spread(zero_point, first), self.scheme)
        return result.transpose(0, self.channel_dim) if scale.ndim and self.channel_dim else result
