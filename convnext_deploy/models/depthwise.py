"""Depthwise convolutions whose weights train fast on a CPU.

Channel `c` of image `n` adds to the gradient of the weights at `(i, j)` the sum over the map of `gradient(h, w) * x(h + i - p,
w + j - p)`, where `p` is the padding: that channel convolved with its gradient as kernel. So all of them are one forward depthwise
convolution of `N * C` channels. oneDNN is fast at that. Its own gradient of the weights is fast for kernels of 3 only; for larger
ones it computes 16 x 16 products of channels to keep 16. Measured for kernels of 7 on one core with AVX-512, in ms:

| map | channels | batch | oneDNN | here |
|---|---|---|---|---|
| 1x1 | 768 | 128 | 27 | 0.4 |
| 2x2 | 320 | 128 | 8.6 | 2.0 |
| 7x7 | 768 | 4 | 8.4 to 25 | 1.3 |
| 8x8 | 128 | 64 | 9.6 | 3.1 |
| 16x16 | 40 | 128 | 16 | 8.0 |
| 28x28 | 192 | 4 | 10 | 5.4 |
| 56x56 | 96 | 4 | 18 | 9.1 |
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_KERNEL = 5  # oneDNN has a fast gradient for kernels of 3


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel of `(N, C, H, W)` with its own kernel of `(C, 1, K, L)`, K and L odd, and keep the size of the map."""
    if _trains_on_a_cpu(x, weight):
        return _Depthwise.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _convolve(x, weight, bias)


def _trains_on_a_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether the weights' gradient will be asked for where the other way to compute it was measured; not in traced graphs."""
    return (
        not (torch.compiler.is_compiling() or torch._C._get_tracing_state())
        and torch.is_grad_enabled()
        and weight.requires_grad
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[2:]) >= _LEAST_KERNEL
        and x.numel() > 0
        and _has_fast_convolutions()
    )


@cache
def _has_fast_convolutions() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, columns = weight.shape[2:]
    return F.conv2d(x, weight, bias, padding=(rows // 2, columns // 2), groups=len(weight))


class _Depthwise(torch.autograd.Function):
    """`_convolve` with another way to the gradient of the weights. Everything in it can be differentiated and mapped again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _by_x(gradient, x, weight) if wanted[0] else None,
            _by_weight(gradient, x, weight.shape[2:]) if wanted[1] else None,
            gradient.sum((0, 2, 3)) if wanted[2] else None,
        )


def _by_x(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    padding = [side // 2 for side in weight.shape[2:]]
    ones, zeros, only_x = [1, 1], [0, 0], [True, False, False]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, ones, padding, ones, False, zeros, len(weight), only_x
    )
    return found[0]  # type: ignore[no-any-return]  # operators have no types


def _by_weight(gradient: Tensor, x: Tensor, kernel: torch.Size) -> Tensor:
    """Return the gradient of the weights, `(C, 1, *kernel)`."""
    images, channels, height, width = x.shape
    # places of the kernel that only ever meet zeros have no gradient, and oneDNN is slow where the padding exceeds the map
    rows, columns = min(kernel[0], 2 * height - 1), min(kernel[1], 2 * width - 1)
    if height == width == 1:
        found = (gradient * x).sum(0).unsqueeze(1)
    else:
        # in the layout (1, N * C, H, W), which oneDNN takes with the fewest copies
        kernels = gradient.reshape(images * channels, 1, height, width)
        each = F.conv2d(
            x.reshape(1, len(kernels), height, width), kernels, padding=(rows // 2, columns // 2), groups=len(kernels)
        )
        found = each.view(images, channels, 1, rows, columns).sum(0)
    border_y, border_x = (kernel[0] - rows) // 2, (kernel[1] - columns) // 2
    return F.pad(found, (border_x, border_x, border_y, border_y))
