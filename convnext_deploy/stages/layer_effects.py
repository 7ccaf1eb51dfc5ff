"""What quantizing each layer alone does to a network's answers to some images; of several processes each measures some layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.sensitivity import Effect, by_harm, count_macs, measure_sensitivity
from convnext_deploy.stages.answers import answers_of
from convnext_deploy.stages.chosen_images import Images
from convnext_deploy.stages.float_layers import float_modules
from convnext_deploy.system.shared_work import share_out


@dataclass(frozen=True)
class _Measuring:
    """What quantizing each of the layers of `macs` alone does to what the float network gives, `outputs`, for the first images."""

    network: ConvNeXt
    folded: ConvNeXt
    images: Images
    outputs: Tensor
    macs: dict[str, int]

    def __call__(self, numbers: range) -> Iterator[Effect]:
        names, labels = tuple(self.macs), self.images.labels
        some = self.images.first(len(self.outputs))
        answers = answers_of(self.network, labels[: len(some)])
        reference = answers(self.outputs.to(some.device))
        floats = float_modules(self.network, self.folded)
        yield from measure_sensitivity(
            self.network,
            some,
            reference,
            {names[number]: self.macs[names[number]] for number in numbers},
            floats=floats,
            multi_label=labels.ndim > 1,
            to_logits=answers,
        )


def layer_effects(
    network: ConvNeXt, folded: ConvNeXt, images: Images, outputs: Tensor, advance: Callable[[], None] = lambda: None
) -> tuple[Effect, ...]:
    """Return what quantizing each layer alone does, the most harmful first; all processes measure.

    Args:
        network: calibrated.
        folded: the float network that it was made of.
        images: of which the first are looked at.
        outputs: of the float network for these, `(N, …)`.
        advance: called after every layer.
    """
    macs, found = count_macs(network, images.first(1)), []
    for effect in share_out(_Measuring(network, folded, images, outputs, macs), range(len(macs)), at_once=1):
        found.append(effect)
        advance()
    return by_harm(found)
