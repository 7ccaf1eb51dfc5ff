"""What a network answers to labelled images: its logits, or those that the nearest neighbours of its features stand for."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from convnext_deploy.config.choices import MetricName
from convnext_deploy.metrics.neighbours import neighbour_votes
from convnext_deploy.models.convnext import ConvNeXt

Answers = Callable[[Tensor], Tensor]
"""Maps what a network gives for some images to logits `(N, classes)`, on the CPU."""
_FLOOR = 0.01  # of all votes, shared by all classes: the logarithm of no vote is finite


def extracts(network: nn.Module) -> bool:
    """Whether a network has no head, so that it gives features."""
    return isinstance(network, ConvNeXt) and not network.num_classes


def metric_of_network(network: nn.Module) -> MetricName:
    """Return what a network is scored by on labelled images."""
    return "kNN top-1" if extracts(network) else "top-1"


def pooled(outputs: Tensor) -> Tensor:
    """Return logits or features `(N, D)` as they are, and a feature map `(N, D, H, W)` as its mean over the places."""
    return outputs if outputs.ndim == 2 else outputs.mean(dim=(2, 3))


def answers_of(network: nn.Module, labels: Tensor) -> Answers:
    """Return how outputs for images with these labels, `(N,)` int64, become logits.

    Of a classifier they are logits. Of a feature extractor each image's nearest neighbours among the others vote, see
    `neighbour_votes`, and the logits are the logarithms of their shares; NaN where a feature is not finite.
    """
    if not extracts(network):
        return lambda outputs: outputs
    known = labels.numpy()
    own, classes = np.arange(len(known)), int(known.max()) + 1

    def answer(outputs: Tensor) -> Tensor:
        features = pooled(outputs)
        if not features.isfinite().all():
            return torch.full((len(features), classes), torch.nan)
        vectors = features.float().numpy()
        return _logits(neighbour_votes(vectors, vectors, known, classes, own=own))

    return answer


def answers_by(network: nn.Module, gallery: Tensor, labels: Tensor) -> Answers:
    """Return how outputs for other images become logits: as `answers_of`, by neighbours among those of the gallery.

    Args:
        network: of both.
        gallery: what it gives for the images of the gallery.
        labels: of these, `(M,)` int64.
    """
    if not extracts(network):
        return lambda outputs: outputs
    vectors, known = pooled(gallery).float().numpy(), labels.numpy()
    classes = int(known.max()) + 1
    return lambda outputs: _logits(neighbour_votes(pooled(outputs).float().numpy(), vectors, known, classes))


def _logits(votes: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Tensor:
    shares = (votes + _FLOOR / votes.shape[1]) / (1 + _FLOOR)
    return torch.from_numpy(np.log(shares).astype(np.float32))
