"""What a network of another library gives a student: logits, and where it can the feature map before its pooling."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from convnext_deploy.errors import ArtifactError

Compute = Callable[[Tensor], tuple[Tensor | None, Tensor | None]]
"""Maps normalized images `(N, C, S, S)` to logits `(N, classes)` and features, `(N, H, W, C)` or `(N, C)`; None: it has none."""

_MOST_PREFIX_TOKENS = 16  # class tokens, distillation tokens and registers; the published networks have up to 5


class ForeignNetwork(nn.Module):
    """A network of another library behind one call.

    Args:
        network: what moves to the device and is kept from training.
        compute: calls it.
        what: the network, for messages.
    """

    def __init__(self, network: nn.Module, compute: Compute, what: str) -> None:
        super().__init__()
        self.network, self._compute, self.what = network, compute, what
        self.features: Tensor | None = None
        """Of the last call, `(N, H, W, C)`; None: it gives none."""

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images `(N, C, S, S)` to logits `(N, classes)`, and keep their features.

        A network without classes gives no logits, `(N, 0)`.
        """
        logits, features = self._compute(images)
        self.features = features[:, None, None] if features is not None and features.ndim == 2 else features
        return images.new_zeros(len(images), 0) if logits is None else logits


def as_map(
    features: Tensor, channels: int, what: str, grid: tuple[int, int] | None = None, prefix: int | None = None
) -> Tensor:
    """Return features as a map `(N, H, W, C)`.

    Args:
        features: `(N, C, H, W)`, `(N, H, W, C)`, or tokens `(N, T, C)`: those of the patches row by row, behind class tokens and
            registers, which are left out.
        channels: C.
        what: the network, for messages.
        grid: rows and columns of the patches, where that is known; a network that merges patches on its way has fewer in the end.
        prefix: number of class tokens and registers; None: not known.

    Raises: ArtifactError: if they are none of these.
    """
    if features.ndim == 4 and features.shape[1] == channels:
        return features.permute(0, 2, 3, 1)
    if features.ndim == 4 and features.shape[3] == channels:
        return features
    if features.ndim == 3 and features.shape[2] == channels and (sides := _sides(features.shape[1], grid, prefix)):
        patches: Tensor = features[:, features.shape[1] - sides[0] * sides[1] :].unflatten(1, sides)
        return patches
    if features.ndim == 2:
        return features[:, None, None]
    raise ArtifactError(
        f"{what} gives features of shape {tuple(features.shape)}; expected a map, or the tokens of its patches."
    )


def _sides(tokens: int, grid: tuple[int, int] | None, prefix: int | None) -> tuple[int, int] | None:
    """Return rows and columns of the patches among tokens: the grid where it fits, otherwise a square; None: neither does."""
    if grid is not None:
        others = tokens - grid[0] * grid[1]
        if others == prefix or (prefix is None and 0 <= others <= _MOST_PREFIX_TOKENS):
            return grid
    side = math.isqrt(max(0, tokens - (prefix or 0)))
    others = tokens - side * side
    fits = 0 <= others <= _MOST_PREFIX_TOKENS if prefix is None else others == prefix
    return (side, side) if fits and side else None
