"""What pruned networks lose before any training: built, and their answers compared with the dense network's."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.choices import Activation
from convnext_deploy.models.block_shapes import block_shapes
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.zoo.cost import count_macs
from convnext_deploy.pruning.build import prune_network
from convnext_deploy.pruning.importance import Importance, measure_importance
from convnext_deploy.quantization.sensitivity import kl_divergence
from convnext_deploy.stages.answers import answers_of
from convnext_deploy.stages.chosen_images import Images, choose_images_to_judge
from convnext_deploy.stages.context import StageContext

_MOST_IMAGES, _LEAST_IMAGES = 512, 16
_MACS = 3e10  # of the images that a network is judged on: about a second of a core
_BATCH_SIZE = 32


class WidthJudge:
    """Builds pruned networks, and compares them with the dense one on the selection images."""

    def __init__(self, source: Artifact, context: StageContext, activation: Activation | None) -> None:
        self.spec, self.activation = source.model, activation
        self.shapes = block_shapes(source.model, source.preprocess.image_size)
        side = round(float(np.prod(source.preprocess.sides)) ** 0.5)
        macs = count_macs(source.model, side)
        count = int(np.clip(_MACS / macs, _LEAST_IMAGES, _MOST_IMAGES))
        self.is_small = macs * _LEAST_IMAGES < _MACS
        calibrating, judging = choose_images_to_judge((count, count), source.preprocess, context, _BATCH_SIZE)
        self._images = judging if len(judging) else calibrating
        self._fitting = calibrating.first(count)
        self._network = load_network(source).to(context.execution.exact_device)
        self._multi_label = context.need_data().multi_label
        self._answers = answers_of(self._network, self._images.labels)
        self._reference = self._answers(_outputs(self._network, self._images))
        self._importance: Importance = ()
        self._seen: dict[tuple[int, ...], tuple[float, float]] = {}

    def measure_blocks(self, advance: Callable[[], None]) -> Importance:
        """Return what each block loses at each width, alone."""
        self._importance = measure_importance(
            self._network, self._fitting, advance=advance, multi_label=self._multi_label
        )
        return self._importance

    def kl(self, widths: tuple[int, ...]) -> float:
        """Return the divergence of a pruned network's answers from the dense one's, in nats an image."""
        return self._judge(widths)[0]

    def agreement(self, widths: tuple[int, ...]) -> float:
        """Return the share of images with the same first guess; of several labels an image, of equal answers."""
        return self._judge(widths)[1]

    @torch.no_grad()
    def _judge(self, widths: tuple[int, ...]) -> tuple[float, float]:
        if widths not in self._seen:
            pruned, _ = prune_network(
                self._network, self.spec, self._importance, widths, self._fitting, activation=self.activation
            )
            logits = self._answers(_outputs(pruned, self._images))
            equal = self._guesses(logits) == self._guesses(self._reference)
            kl = kl_divergence(self._reference, logits, multi_label=self._multi_label)
            self._seen[widths] = min(kl, 1e9), float(equal.double().mean())
        return self._seen[widths]

    def _guesses(self, logits: Tensor) -> Tensor:
        return logits > 0 if self._multi_label else logits.argmax(1)


@torch.no_grad()
def _outputs(network: nn.Module, images: Images) -> Tensor:
    """Return what a network gives for images, `(N, …)` on the CPU; the first process alone, as everything here."""
    return torch.cat([network(batch).float().cpu() for batch in images.batches()])
