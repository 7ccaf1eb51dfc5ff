"""ConvNeXt v1 and v2, the network on one page.

Sources: Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545; Woo et al. 2023, "ConvNeXt V2", arXiv 2301.00808.

The residual stream is kept channels-last, `(N, H, W, C)`, through the whole network: LayerNorm and the two pointwise layers
work on the last dimension, and a convolution sees the same memory as a channels-last `(N, C, H, W)` view, so no layout copy
is ever made. State-dict keys are those of the official repositories.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
KERNEL_SIZE = 7
MLP_RATIO = 4


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


class GRN(nn.Module):
    """Global response normalization over the pixels of each image: `gamma * (x * Nx) + beta + x`.

    `Gx` is the L2 norm of each channel over (H, W), `Nx = Gx / (mean of Gx over the channels + 1e-6)`.

    Source: ConvNeXt V2, section 3.2, algorithm 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, H, W, C)` to `(N, H, W, C)`."""
        # A sum of H*W squares: in half precision it would overflow, so it is always taken in float32.
        gx = torch.linalg.vector_norm(x.float(), dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        # gamma * (x * nx) + x is x times one factor per image and channel, so the large tensor is read twice and not four times.
        factor = 1.0 + self.gamma * nx
        y: Tensor = x * factor.to(x.dtype) + self.beta.to(x.dtype)
        return y


class Block(nn.Module):
    """Depthwise 7×7 convolution → LayerNorm → linear C→4C → GELU [→ GRN] → linear 4C→C [→ LayerScale], plus the input."""

    def __init__(self, dim: int, drop_path_rate: float, layer_scale_init: float | None, use_grn: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pwconv1 = nn.Linear(dim, MLP_RATIO * dim)
        self.grn = GRN(MLP_RATIO * dim) if use_grn else None
        self.pwconv2 = nn.Linear(MLP_RATIO * dim, dim)
        self.gamma = None if layer_scale_init is None else nn.Parameter(torch.full((dim,), layer_scale_init))
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, H, W, C)` to `(N, H, W, C)`."""
        branch: Tensor = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        branch = F.gelu(self.pwconv1(self.norm(branch)))
        if self.grn is not None:
            branch = self.grn(branch)
        branch = self.pwconv2(branch)
        if self.gamma is not None:
            branch = self.gamma * branch
        if self.training and self.drop_path_rate > 0.0:
            branch = drop_path(branch, self.drop_path_rate)
        return x + branch


class Stem(nn.Sequential):
    """Patchify convolution and LayerNorm: `(N, C_in, H, W)` to `(N, H/p, W/p, C)`."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, dim, patch_size, stride=patch_size), nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Sequential's)
        """See the class."""
        x: Tensor = self[0](input.contiguous(memory_format=torch.channels_last))
        return self[1](x.permute(0, 2, 3, 1))  # type: ignore[no-any-return]  # modules return Any


class Downsample(nn.Sequential):
    """LayerNorm and 2×2 convolution with stride 2: `(N, H, W, C)` to `(N, H/2, W/2, C')`."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(nn.LayerNorm(dim, eps=LAYER_NORM_EPS), nn.Conv2d(dim, out_dim, 2, stride=2))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Sequential's)
        """See the class."""
        x: Tensor = self[0](input)
        return self[1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]  # as above


class ConvNeXt(nn.Module):
    """A ConvNeXt classifier.

    Args:
        depths: number of blocks of each of the four model stages.
        dims: channels of each model stage.
        num_classes: number of logits, >= 1.
        in_channels: channels of the input images.
        patch_size: kernel and stride of the stem: 4 in the papers, 2 for images of about 32 pixels.
        drop_path_rate: stochastic depth of the last block; it grows linearly over all blocks of the network.
        layer_scale_init: initial LayerScale, or None for no LayerScale (v2).
        use_grn: global response normalization after the GELU (v2).
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        patch_size: int = 4,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = 1e-6,
        use_grn: bool = False,
    ) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [Stem(in_channels, dims[0], patch_size)]
            + [Downsample(dim, out_dim) for dim, out_dim in itertools.pairwise(dims)]
        )
        # One linspace over the whole depth; it does not restart in each model stage.
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, next(rates), layer_scale_init, use_grn) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=LAYER_NORM_EPS)
        self.head = nn.Linear(dims[-1], num_classes)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C_in, H, W)` to logits `(N, num_classes)`."""
        x = images
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean(dim=(1, 2))))  # type: ignore[no-any-return]  # as above


def _initialize(module: Any) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
