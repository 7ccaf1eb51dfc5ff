"""Scale the channels between a norm and the layer after it, exactly: what the norm divides by, the layer's weight multiplies.

| from | to | what takes the division |
|---|---|---|
| norm of a block, of a downsampling layer, before the head | the layer after it | its weight and bias |
| GRN | the second linear layer of a v2 block | `gain`, `gamma` and `beta`: `(x (gain + gamma Nx) + beta) / s` is another GRN |

The activation of a v1 block has no constants, so nothing can be scaled between it and the second linear layer for free.

Sources: Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, section 4; for GRN the algebra above.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import places
from convnext_deploy.models.layers import GRN


def smoothable(network: ConvNeXt) -> dict[str, str]:
    """Return the layers whose input channels can be scaled for free → the norm or GRN before each, by name."""
    return {
        layer: source
        for rewrite, source, layer in places(network)
        if layer is not None and rewrite in ("norm_affine", "grn_bias")
    }


@torch.no_grad()
def scale_inputs(network: ConvNeXt, scales: Mapping[str, Tensor]) -> None:
    """Divide the input channels of layers by scales, in place, without changing what the network computes.

    Args:
        network: in float.
        scales: name of a layer that `smoothable` lists → `(C_in,)`, > 0 and finite.

    Raises: CheckpointError: if the input of a layer cannot be scaled, or scales are not as many as channels, positive and
        finite; the network is unchanged then.
    """
    sources = smoothable(network)
    for name, scale in scales.items():
        if name not in sources:
            raise CheckpointError(f"the input of '{name}' cannot be scaled: no norm or GRN stands right before it.")
        channels = network.get_submodule(name).weight.shape[1]  # type: ignore[index]  # a layer
        if scale.shape != (channels,):
            raise CheckpointError(f"'{name}' has {channels} input channels, and scales of shape {tuple(scale.shape)}.")
        if getattr(network.get_submodule(sources[name]), "weight", 0) is None:
            raise CheckpointError(
                f"the norm before '{name}' has no weight to divide; scale before identities are dropped."
            )
        if not (scale.isfinite().all() and (scale > 0).all()):
            raise CheckpointError(f"the scales of '{name}' must be positive and finite.")
    for name, scale in scales.items():
        source, layer = network.get_submodule(sources[name]), network.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)  # what smoothable names
        if isinstance(source, GRN):
            if source.gain is None:
                source.gain = nn.Parameter(torch.ones_like(source.gamma))
            constants: Iterable[Tensor | None] = (source.gain, source.gamma, source.beta)
        else:
            constants = (source.weight, getattr(source, "bias", None))  # type: ignore[assignment]  # every norm has one
        for constant in constants:
            if constant is not None:
                constant.copy_(constant.double() / scale.double().view_as(constant))
        layer.weight.copy_(layer.weight.double() * scale.double().view(1, -1, *[1] * (layer.weight.ndim - 2)))


def add_gains(network: ConvNeXt, state: Iterable[str]) -> None:
    """Give every GRN whose `gain` is among the keys of a state dict that parameter, in place."""
    keys = set(state)
    for name, module in network.named_modules():
        if isinstance(module, GRN) and f"{name}.gain" in keys:
            module.gain = nn.Parameter(torch.ones_like(module.gamma))
