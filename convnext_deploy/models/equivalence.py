"""The proof that a rewritten network computes what it did: its logits before and after, in float64 and in float32."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.convnext import ConvNeXt

TOLERANCES = {"float64": 1e-9, "float32": 1e-3}
"""What a rewrite may move a logit by, relative to the largest one. Float64 shows that the algebra is right, float32 only that
nothing was lost between there and the network that is returned: it may not be smaller than what rounding does to hard weights."""
_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Fold:
    """The constants of one module that went into a layer; `source` and `target` are names of modules, or `mean and std`."""

    rewrite: str
    source: str
    target: str


@dataclass(frozen=True)
class Kept:
    """Constants that stayed where they were, and why."""

    rewrite: str
    source: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """The largest difference of any logit before and after, over `num_images` `random` or `given` images.

    `precision` is `float64` or `float32`; `relative` is relative to the largest logit before.
    """

    images: str
    num_images: int
    precision: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class Certificate:
    """What was folded, what was not, and how far the logits moved, computed on the CPU.

    In float64 the rewritten network is compared before its weights are rounded: that is the algebra and nothing else. In float32
    it is the network that `fold` returns.
    """

    folded: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    differences: tuple[Difference, ...]

    @property
    def holds(self) -> bool:
        """Whether all differences are within `TOLERANCES`."""
        return all(difference.relative <= TOLERANCES[difference.precision] for difference in self.differences)

    def record(self) -> dict[str, Any]:
        """Return what goes into a JSON file."""
        return {"holds": self.holds, **dataclasses.asdict(self)}


@torch.no_grad()
def compute_logits(network: ConvNeXt, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the logits `(N, num_classes)` of images `(N, C, H, W)`, computed on the CPU in `dtype`, as float64.

    There neither TensorFloat-32 nor a device without float64 blurs them. The network is copied only where it is not so already.

    Raises: CheckpointError: if a logit is not finite.
    """
    weight = network.head.weight
    if network.training or weight.dtype != dtype or weight.device.type != "cpu":
        network = copy.deepcopy(network).to("cpu", dtype).eval()
    logits = torch.cat([network(batch.to(dtype)) for batch in images.split(_IMAGES_AT_ONCE)]).double()
    if not logits.isfinite().all():
        raise CheckpointError(f"the logits are not finite in {dtype_name(dtype)}; such a network cannot be folded.")
    return logits


def compare(images: str, dtype: torch.dtype, before: Tensor, after: Tensor) -> Difference:
    """Return the difference of logits `(N, num_classes)`, both finite."""
    absolute, largest = (after - before).abs().max().item(), before.abs().max().item()
    # all logits 0 before and not after: as far away as a number can say
    relative = absolute / max(largest, torch.finfo(torch.float64).tiny) if absolute else 0.0
    return Difference(images, len(before), dtype_name(dtype), absolute, min(relative, torch.finfo(torch.float64).max))


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
