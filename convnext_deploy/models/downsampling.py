"""What makes maps smaller: the stem, which sees the images, and the layers before the other model stages."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from convnext_deploy.models.layers import ACTIVATIONS


class Activation(nn.Module):
    """A named activation as a module, so that it can stand in a stem."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""
        return ACTIVATIONS[self.name](x)


class Stem(nn.Sequential):
    """Convolutions and a norm: `(N, C_in, H, W)` to `(N, H/p, W/p, C)`.

    `patch`: one convolution with kernel and stride `patch_size`. `overlap`: two 3×3 convolutions with stride 2, of which the
    first has `stem_dim` channels. `overlap_act`: the same with an activation between them. With `halve`, a norm and a 2×2
    convolution with stride 2 follow, which timm counts to the first model stage.

    Attributes:
        mean, std: buffers `(C_in, 1, 1)` where the first convolution takes pixel values in [0, 1], as folding may make it do: the
            stem still takes normalized images, and undoes the normalization. None everywhere else.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        kind: str,
        in_channels: int,
        stem_dim: int,
        dim: int,
        patch_size: int,
        norm: Callable[[int], nn.Module],
        activation: str,
        *,
        halve: bool = False,
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)]
        if kind != "patch":
            layers = [
                nn.Conv2d(in_channels, stem_dim, 3, stride=2, padding=1),
                *([Activation(activation)] if kind == "overlap_act" else []),
                nn.Conv2d(stem_dim, dim, 3, stride=2, padding=1),
            ]
        self.convolutions = len(layers)
        super().__init__(*layers, norm(dim), *(Downsample(dim, dim, norm) if halve else ()))
        self.register_buffer("mean", None)
        self.register_buffer("std", None)

    def undo_normalization(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Undo a normalization before the first convolution, in place; None: let it see the images as they are again."""
        device = next(self.parameters()).device
        for name, values in (("mean", mean), ("std", std)):
            setattr(self, name, None if values is None else torch.tensor(values, device=device).view(-1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Sequential's)
        x = input.contiguous(memory_format=torch.channels_last)
        if self.mean is not None and self.std is not None:
            x = x * self.std + self.mean
        for layer in itertools.islice(self, self.convolutions):
            x = layer(x)
        x = self[self.convolutions](x.permute(0, 2, 3, 1))
        return downsample(x, self[-2], self[-1]) if len(self) > self.convolutions + 1 else x


class Downsample(nn.Sequential):
    """Norm and 2×2 convolution with stride 2: `(N, H, W, C)` to `(N, H/2, W/2, C')`.

    With stride 1 the map keeps its size, for a model stage with `dilation` > 1 behind it, and the convolution sees zeros beyond the
    border: on both sides with a dilation of its own, otherwise to the right and below. That is half of the stage's, at most 2, as
    in timm.
    """

    def __init__(
        self, dim: int, out_dim: int, norm: Callable[[int], nn.Module], stride: int = 2, dilation: int = 1
    ) -> None:
        if stride > 1:
            convolution = nn.Conv2d(dim, out_dim, 2, stride=stride)
        else:
            convolution = nn.Conv2d(dim, out_dim, 2, padding=1, dilation=1 if dilation <= 2 else 2)
        super().__init__(norm(dim), convolution)
        # `padding="same"` would warn, and copy the input to pad it on one side
        self.crop = int(convolution.padding == convolution.dilation == (1, 1))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Sequential's)
        x = downsample(input, self[0], self[1])
        return x[:, self.crop :, self.crop :] if self.crop else x


def downsample(x: Tensor, norm: nn.Module, convolution: nn.Module) -> Tensor:
    """Norm and convolution, `(N, H, W, C)` to `(N, H', W', C')`."""
    return convolution(norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]  # modules return Any
