"""Parameters that change nothing: what folding leaves behind, to be kept from training or left out of a graph."""

from collections.abc import Iterator

from torch import nn

from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.layers import GRN, ScaleNorm

_NEUTRAL: tuple[tuple[type[nn.Module], str, float], ...] = (
    (Block, "gamma", 1.0),
    (nn.LayerNorm, "weight", 1.0),
    (nn.LayerNorm, "bias", 0.0),
    (ScaleNorm, "weight", 1.0),
    (GRN, "beta", 0.0),
)


def identity_parameters(network: ConvNeXt) -> tuple[str, ...]:
    """Return the names of the parameters that change nothing: norm weights and LayerScale of 1, norm and GRN biases of 0.

    A training that is to leave a folded network folded keeps them frozen.
    """
    return tuple(f"{name}.{attribute}" for name, _, attribute in _identities(network))


def drop_identities(network: ConvNeXt) -> ConvNeXt:
    """Take what `identity_parameters` names out of a network that will only run or be exported, in place, and return it.

    It computes the same bits in fewer passes over its tensors. It has fewer parameters than its `ModelSpec` says, so it is not for
    saving. The weight of a LayerNorm stays, because ONNX knows no LayerNormalization without a scale.
    """
    for _, module, attribute in list(_identities(network)):
        if not (isinstance(module, nn.LayerNorm) and attribute == "weight"):
            setattr(module, attribute, None)
    return network


def _identities(network: ConvNeXt) -> Iterator[tuple[str, nn.Module, str]]:
    for name, module in network.named_modules():
        for attribute, parameter, neutral in constants(module):
            if (parameter == neutral).all():
                yield name, module, attribute


def constants(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Yield the parameters of one module that can be folded away, by name, each with the value at which it changes nothing."""
    for kind, attribute, neutral in _NEUTRAL:
        parameter = getattr(module, attribute) if isinstance(module, kind) else None
        if parameter is not None:
            yield attribute, parameter, neutral
