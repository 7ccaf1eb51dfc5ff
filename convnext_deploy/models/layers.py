"""The layers that PyTorch does not have, and the choices of norm and activation that ConvNeXt variants make.

All of them work on the last dimension of channels-last tensors `(N, ..., C)`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GRN(nn.Module):
    """Global response normalization over the pixels of each image: `gamma * (x * Nx) + beta + gain * x`.

    `beta` None is 0, `gain` None is 1 for all channels, as in the paper; with another gain, the channels that leave can be
    scaled without another operation. `Gx` is the L2 norm of each channel over (H, W), `Nx = Gx / (mean of Gx over the channels +
    1e-6)`.

    Source: ConvNeXt V2, arXiv 2301.00808, section 3.2, algorithm 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))  # None after fold.drop_identities
        self.gain: nn.Parameter | None = None  # (1, 1, 1, channels) after smoothing

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, H, W, C)` to `(N, H, W, C)`."""
        # A sum of H*W squares: in half precision it would overflow, so it is taken in float32 at least.
        return self.scale(x, torch.linalg.vector_norm(_at_least_float32(x), dim=(1, 2), keepdim=True))

    def scale(self, x: Tensor, norms: Tensor, channels: int = -1) -> Tensor:
        """Return the result for `x` of four dimensions, given its `Gx`; `channels` is the dimension of the channels in both."""

        def shaped(parameter: Tensor) -> Tensor:
            return parameter if channels == -1 else parameter.view([-1 if d == channels else 1 for d in range(4)])

        nx = norms / (norms.mean(dim=channels, keepdim=True) + 1e-6)
        # gamma * (x * nx) + x is x times one factor per image and channel, so the large tensor is read twice and not four times.
        factor = (1.0 if self.gain is None else shaped(self.gain)) + shaped(self.gamma) * nx
        y: Tensor = x * factor.to(x.dtype)
        return y if self.beta is None else y + shaped(self.beta).to(x.dtype)


class ScaleNorm(nn.Module):
    """Divide each pixel's channels by a measure of their size and multiply by a weight, if there is one; no bias.

    RMSNorm divides by `sqrt(mean(x²) + eps)` (Zhang and Sennrich 2019, arXiv 1910.07467). The "simple norm" of timm's
    zepto variants divides by `sqrt(var(x) + eps)` with the unbiased variance; the mean is not subtracted from `x`.
    """

    def __init__(self, channels: int, eps: float, *, centred: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))  # None after fold.drop_identities
        self.eps, self.centred = eps, centred

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, ..., C)` to `(N, ..., C)`; squares are summed in float32 at least, where they cannot overflow."""
        wide = _at_least_float32(x)
        power = _variance(wide) if self.centred else wide.square().mean(dim=-1, keepdim=True)
        y = wide * torch.rsqrt(power + self.eps)
        return (y if self.weight is None else y * self.weight).to(x.dtype)


def _variance(x: Tensor) -> Tensor:
    if torch.compiler.is_exporting():
        # the exporter writes `var` with twelve nodes that compute shapes; this is what they compute
        return (x - x.mean(dim=-1, keepdim=True)).square().sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)
    return x.var(dim=-1, keepdim=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.float()


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layernorm": lambda channels, eps: nn.LayerNorm(channels, eps=eps),
    "rmsnorm": partial(ScaleNorm, centred=False),
    "simplenorm": partial(ScaleNorm, centred=True),
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


def drop_path(x: Tensor, drop_probability: float) -> Tensor:
    """Stochastic depth: zero whole samples of a residual branch and rescale the others.

    Args:
        x: `(N, ...)` residual branch.
        drop_probability: in [0, 1).

    Source: Huang et al. 2016, arXiv 1603.09382.
    """
    keep_probability = 1.0 - drop_probability
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_probability)
    return x * (mask / keep_probability)
