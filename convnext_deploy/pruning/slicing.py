"""Take hidden units out of a block, and blocks out of a network."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.layers import GRN

_SMALL = 1e-2  # of the typical LayerScale: a weight is not divided by less


def blocks_of(network: ConvNeXt) -> Iterator[tuple[int, int, Block | None]]:
    """Yield model stage, number within it and block, over the whole network; None where a block was removed."""
    for stage, blocks in enumerate(network.stages):
        assert isinstance(blocks, nn.Sequential)  # a ModuleList does not know what it holds
        for number, block in enumerate(blocks):
            yield stage, number, block if isinstance(block, Block) else None


def sliced(block: Block, keep: Tensor, share: float = 1.0) -> Block:
    """Return a block with the hidden units `keep`, sorted `(K,)`, and their weights.

    GRN divides the norm of each channel by the mean over the channels. Its `gamma` is scaled so that the removed ones count as
    zeros in that mean, as in the whole network with their weights set to zero; and by `share` besides, the part of the sum of the
    norms that the others have, so that the quotient is on average what it was.
    """
    result = copy.deepcopy(block)
    keep = keep.to(block.pwconv1.weight.device)
    result.pwconv1 = _linear(block.pwconv1.weight[keep], _bias(block.pwconv1)[keep])
    result.pwconv2 = _linear(block.pwconv2.weight[:, keep], _bias(block.pwconv2))
    if block.grn is not None:
        result.grn = GRN(len(keep)).to(keep.device)
        for name in ("gamma", "beta", "gain"):
            value = getattr(block.grn, name)
            setattr(result.grn, name, None if value is None else nn.Parameter(value.detach()[..., keep].clone()))
        result.grn.gamma.data *= share * block.pwconv1.out_features / len(keep)
    return result


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = (nn.Parameter(each.detach().clone()) for each in (weight, bias))
    return layer


def _bias(layer: nn.Linear) -> Tensor:
    assert layer.bias is not None  # every layer of a ConvNeXt has one
    return layer.bias


def outgoing(block: Block) -> tuple[Tensor, Tensor]:
    """Return weight `(C, M)` and bias `(C,)` of the second linear layer with LayerScale in it, float64 on the CPU."""
    weight, bias = (each.detach().to("cpu", torch.float64) for each in (block.pwconv2.weight, _bias(block.pwconv2)))
    if block.gamma is None:
        return weight, bias
    gamma = block.gamma.detach().to("cpu", torch.float64)
    return weight * gamma[:, None], bias * gamma


def set_outgoing(block: Block, weight: Tensor, bias: Tensor) -> None:
    """Give the second linear layer what `outgoing` is to return. LayerScale stays, but where it is close to 0."""
    scale = torch.ones(len(bias), dtype=torch.float64)
    if block.gamma is not None:
        scale = block.gamma.detach().to("cpu", torch.float64)
        typical = scale.square().mean().sqrt()
        scale = torch.where(scale.abs() > _SMALL * typical, scale, typical.clamp(min=1e-6))
        block.gamma.data.copy_(scale)
    block.pwconv2.weight.data.copy_(weight / scale[:, None])
    _bias(block.pwconv2).data.copy_(bias / scale)


def shift_stream(network: ConvNeXt, stage: int, number: int, shift: Tensor) -> bool:
    """Add `(C,)` to what arrives at a block, in place, by the bias of what gave it; False where that has no bias."""
    for before in range(number - 1, -1, -1):
        block = network.stages[stage][before]  # type: ignore[index]  # a ModuleList does not know what it holds
        if isinstance(block, Block):
            weight, bias = outgoing(block)
            set_outgoing(block, weight, bias + shift.to("cpu", torch.float64))
            return True
    # the convolution of a downsampling, or the norm of a stem
    last = network.downsample_layers[stage][-1]  # type: ignore[index]  # likewise
    own: Tensor | None = getattr(last, "bias", None)
    if own is not None:
        own.data += shift.to(own)
    return own is not None
