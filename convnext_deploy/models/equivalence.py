"""Certify that a rewritten network computes what it did: its logits before and after, in float64 and in float32."""

import copy
from typing import Literal

import torch
from torch import Tensor

from convnext_deploy.artifacts.details import Difference
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.convnext import ConvNeXt

_IMAGES_AT_ONCE = 8


@torch.no_grad()
def compute_logits(network: ConvNeXt, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a network gives for images `(N, C, H, W)`, logits or features, computed on the CPU in `dtype`, as float64.

    There neither TensorFloat-32 nor a device without float64 blurs them. The network is copied only where it is not so already.

    Raises: CheckpointError: if a logit is not finite.
    """
    weight = next(network.parameters())
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
    precision: Literal["float64", "float32"] = "float64" if dtype == torch.float64 else "float32"
    return Difference(images, len(before), precision, absolute, min(relative, torch.finfo(torch.float64).max))


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
