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


def as_map(features: Tensor, channels: int, what: str) -> Tensor:
    """Return features as a map `(N, H, W, C)`.

    Args:
        features: `(N, C, H, W)`, `(N, H, W, C)`, or tokens `(N, T, C)`: a square of them in rows, behind class tokens and
            registers.
        channels: C.
        what: the network, for messages.

    Raises: ArtifactError: if they are none of these.
    """
    if features.ndim == 4 and features.shape[1] == channels:
        return features.permute(0, 2, 3, 1)
    if features.ndim == 4 and features.shape[3] == channels:
        return features
    if features.ndim == 3 and features.shape[2] == channels:
        tokens = features.shape[1]
        side = math.isqrt(tokens)
        if 0 <= tokens - side * side <= _MOST_PREFIX_TOKENS:
            square: Tensor = features[:, tokens - side * side :].unflatten(1, (side, side))
            return square
    if features.ndim == 2:
        return features[:, None, None]
    raise ArtifactError(
        f"{what} gives features of shape {tuple(features.shape)}; expected a map, or a square of tokens."
    )
