"""Fake quantization: round to the integer grid and come back, with gradients for weights, inputs and scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convnext_deploy.quantization.observers import Observer
from convnext_deploy.quantization.scheme import TensorScheme


class _LearnedStepSize(torch.autograd.Function):
    """Forward: quantize-dequantize. Backward: straight-through for `x`, learned step size for `scale`.

    With `v = x / scale + zero_point`, the derivative to `scale` is `round(v) - v` inside the grid and
    `clamp(v) - zero_point` outside. Source: Esser et al. 2020, arXiv 1902.08153, equation 3.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
        integers = torch.round(x / scale).add_(zero_point).clamp_(quant_min, quant_max)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid = (quant_min, quant_max)
        return integers.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, zero_point = ctx.saved_tensors
        quant_min, quant_max = ctx.grid
        ratio = x / scale
        rounded = torch.round(ratio).add_(zero_point)
        inside = (rounded >= quant_min) & (rounded <= quant_max)
        step = rounded.clamp_(quant_min, quant_max).sub_(zero_point).sub_(ratio.mul_(inside))
        by_scale = step.mul_(gradient)
        by_scale = by_scale.flatten(1).sum(1).view_as(scale) if scale.ndim else by_scale.sum()
        return gradient * inside, by_scale, None, None, None


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: TensorScheme) -> Tensor:
    """Return the integers of `x` as float32: round half to even, then saturate, as ONNX's QuantizeLinear does."""
    scale, zero_point = _broadcast(scale, x), _broadcast(zero_point, x)
    return torch.round(x / scale).add_(zero_point).clamp_(scheme.quant_min, scheme.quant_max)


def _broadcast(qparam: Tensor, x: Tensor) -> Tensor:
    return qparam.view(-1, *[1] * (x.ndim - 1)) if qparam.ndim else qparam


class FakeQuantize(nn.Module):
    """A quantizer site: float before calibration, on its grid after `freeze`.

    The scale is learned as its logarithm: Adam moves every parameter by about its learning rate whatever the gradient's size, and
    only in the logarithm is that the same relative change for every scale. It also keeps the scale positive.
    Source: Jain et al. 2020, arXiv 1903.08066, section 3 and appendix B.

    Attributes:
        log2_scale: parameter, `()` or `(channels, )` float32.
        zero_point: buffer, same shape, int32.
        enabled: False makes it the identity, so that the float model shows through exactly.
        observer: while set, inputs are observed and pass unchanged.
    """

    def __init__(self, scheme: TensorScheme, channels: int | None) -> None:
        super().__init__()
        shape = (channels,) if channels is not None else ()
        self.scheme = scheme
        self.log2_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        self.zero_point: Tensor
        self.enabled = True
        self.observer: Observer | None = None

    @property
    def scale(self) -> Tensor:
        """Width of a step of the grid, `()` or `(channels,)` float32, > 0."""
        return torch.exp2(self.log2_scale)

    @torch.no_grad()
    def freeze(self, scale: Tensor, zero_point: Tensor) -> None:
        """Fix the grid."""
        self.log2_scale.copy_(torch.log2(scale))
        self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid, in float32 whatever the autocast dtype: a grid of 256 steps needs more than bfloat16."""
        if self.observer is not None:
            self.observer.observe(x.detach())
            return x
        if not self.enabled:
            return x
        scale, zero_point = _broadcast(self.scale, x), _broadcast(self.zero_point, x)
        result: Tensor = _LearnedStepSize.apply(
            x.float(), scale, zero_point, self.scheme.quant_min, self.scheme.quant_max
        )
        return result
