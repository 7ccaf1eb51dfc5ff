"""Replace convolutions whose patches neither overlap nor touch padding by linear layers on the patches.

Both compute the same sums. A runtime may have a kernel that gives float from integers for one of them only: ONNX Runtime has it for
linear layers, while its INT8 convolutions round their results to 8 bits.
"""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Integer = TypeVar("Integer", bound=np.generic)


class PatchLinear(nn.Module):
    """A convolution with kernel = stride and no padding, as a linear layer: `(N, C, H, W)` to `(N, C', H/p, W/q)`.

    Rows and columns that fill no patch are left out, as the convolution does. `weight` is `(C', p q C)`.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        self.height, self.width = convolution.kernel_size
        self.weight = nn.Parameter(weight.permute(0, 2, 3, 1).reshape(len(weight), -1))
        self.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # where the graph is in the order N, H, W, C, the transposes at both ends cancel
        images, height, width, channels = x.shape
        rows, columns = height // self.height, width // self.width
        x = x[:, : rows * self.height, : columns * self.width]
        x = x.reshape(images, rows, self.height, columns, self.width, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(images, rows, columns, self.height * self.width * channels)
        return F.linear(x, self.weight, self.bias).permute(0, 3, 1, 2)


def patch_rows(weight: NDArray[Integer]) -> NDArray[Integer]:
    """Return the weight `(C', C, p, q)` of a convolution as that of its `PatchLinear`, `(C', p q C)`."""
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)


def as_patch_linear(model: Model, names: Iterable[str]) -> Model:
    """Put a `PatchLinear` in place of every convolution that is named, and return the model, which is then for export alone."""
    for name in names:
        parent, _, child = name.rpartition(".")
        convolution = model.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)  # the scheme says so of no other layer
        setattr(model.get_submodule(parent), child, PatchLinear(convolution))
    return model
