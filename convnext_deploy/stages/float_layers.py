"""Layers that a quantized network leaves in float are those of the folded float network, bit for bit.

Rounding, bias correction and smoothing change weights and biases for the layer's own quantizers and for errors that arrive at it.
A layer without quantizers has no use for that: with them it would compute rounded weights all the same, and a correction of what
is gone.
"""

import copy
from collections.abc import Collection

import torch
from torch import nn

from convnext_deploy.models.channel_scaling import smoothable
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.prepare import Floats, prepare, quantized_layers, take_parameters, without_quantizers
from convnext_deploy.quantization.scheme import QuantizationScheme


def float_modules(network: nn.Module, folded: ConvNeXt) -> Floats:
    """Return, for each quantized layer of a network, it and what was smoothed for it, each with that of the float network."""
    return {
        name: [(network.get_submodule(each), folded.get_submodule(each)) for each in _parts(folded, name)]
        for name, _ in quantized_layers(network)
    }


def _parts(folded: ConvNeXt, layer: str) -> list[str]:
    """Return the names of a layer and, where there is one, of the norm or GRN whose channels are scaled against its own."""
    return [name for name in (layer, smoothable(folded).get(layer)) if name is not None]


@torch.no_grad()
def leave_in_float(
    network: ConvNeXt, folded: ConvNeXt, scheme: QuantizationScheme, layers: Collection[str]
) -> ConvNeXt:
    """Return a copy of a quantized network in which some of its layers are those of the float network it was made of.

    Args:
        network: quantized, from `folded`.
        folded: in float.
        scheme: with these layers in float, for the others as before.
        layers: names.
    """
    plain = without_quantizers(network)
    for layer in layers:
        for name in _parts(folded, layer):
            take_parameters(plain.get_submodule(name), copy.deepcopy(folded.get_submodule(name)))
    result = prepare(plain, scheme)
    quantized = {f"{name}." for name, _ in quantized_layers(result)}
    state = network.state_dict()
    grids = {key: value for key, value in state.items() if any(key.startswith(name) for name in quantized)}
    result.load_state_dict(grids, strict=False)
    return result
