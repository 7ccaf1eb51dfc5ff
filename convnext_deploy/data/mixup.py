"""Mixup and CutMix: every image of a batch is mixed with the one before it, and so are their labels."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_deploy.config.fit import Augmentation

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels; bottom and right are outside."""


def mix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Mix a batch by Mixup or by CutMix, or leave it, as `augmentation` says; one draw holds for the whole batch.

    Args:
        images: `(N, C, H, W)` float, normalized, in random order.
        labels: `(N,)` int64, below `num_classes`; or of multi-label data `(N, num_classes)`: 1, 0; below 0 where it is not known.
        num_classes: of the network.
        augmentation: with both alphas above 0, each of the two has half the batches.
        rng: where the draws come from.
        before: which image is mixed into each, `(N,)`; None: the one before it.

    Returns: images of the same shape; probabilities of the classes `(N, num_classes)` float32 without label smoothing, which is
    the loss's, below 0 where they are not known; and the weight of each image itself, the image before it has the rest. A batch
    that is left has probabilities too.
    """
    mixes = rng.uniform() < augmentation.mixing_probability
    cuts = augmentation.cutmix_alpha > 0 and (augmentation.mixup_alpha == 0 or rng.uniform() < 0.5)
    alpha = augmentation.cutmix_alpha if cuts else augmentation.mixup_alpha
    if not mixes or alpha == 0:
        return images, _as_targets(labels, num_classes), 1.0
    weight = rng.beta(alpha, alpha)
    if cuts:
        box = draw_box(rng, weight, images.shape[2], images.shape[3])
        return *cutmix(images, labels, num_classes, box, before), area_outside(box, images.shape[2], images.shape[3])
    return *mixup(images, labels, num_classes, weight, before), weight


def mixup(
    images: Tensor, labels: Tensor, num_classes: int, weight: float, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return `weight` times each image and label plus `1 - weight` times those before it in the batch, or those named.

    Source: Zhang et al. 2017, arXiv 1710.09412.
    """
    mixed = torch.lerp(_roll(images, before), images, weight)
    return _channels_last(mixed), _mix_labels(labels, num_classes, weight, before)


def cutmix(
    images: Tensor, labels: Tensor, num_classes: int, box: Box, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return each image with a box of the one before it in the batch, or the one named; labels are weighed with the areas.

    Source: Yun et al. 2019, arXiv 1905.04899.
    """
    top, left, bottom, right = box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = _roll(images, before)[:, :, top:bottom, left:right]
    share = area_outside(box, images.shape[2], images.shape[3])
    return _channels_last(mixed), _mix_labels(labels, num_classes, share, before)


def area_outside(box: Box, height: int, width: int) -> float:
    """Return the share of an image that a box leaves."""
    top, left, bottom, right = box
    return 1.0 - (bottom - top) * (right - left) / (height * width)


def draw_box(rng: np.random.Generator, weight: float, height: int, width: int) -> Box:
    """Draw CutMix's box: `1 - weight` of the image, with its aspect ratio, around a pixel anywhere, clipped to the image.

    The box may be smaller than asked for, because it is clipped and has whole pixels; `cutmix` counts what it covers.

    Source: Yun et al. 2019, arXiv 1905.04899, equation 2 and appendix A.
    """
    reach = 0.5 * np.sqrt(1.0 - weight)
    half_height, half_width = int(reach * height), int(reach * width)
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(row - half_height, 0), max(column - half_width, 0)
    return top, left, min(row + half_height, height), min(column + half_width, width)


def _roll(of_rows: Tensor, before: Tensor | None) -> Tensor:
    return of_rows.roll(1, 0) if before is None else of_rows[before]


def _mix_labels(labels: Tensor, num_classes: int, weight: float, before: Tensor | None) -> Tensor:
    targets = _as_targets(labels, num_classes)
    others = _roll(targets, before)
    mixed = weight * targets + (1.0 - weight) * others
    # what is not known of one of two images is not known of the mixture
    return torch.where((targets < 0) | (others < 0), torch.full_like(mixed, -1.0), mixed)


def _as_targets(labels: Tensor, num_classes: int) -> Tensor:
    if labels.ndim > 1:
        return labels.float()
    targets = F.one_hot(labels.clamp(min=0), num_classes).float()
    return torch.where((labels < 0)[:, None], torch.full_like(targets, -1.0), targets)


def _channels_last(images: Tensor) -> Tensor:
    # roll forgets the order in memory
    return images.contiguous(memory_format=torch.channels_last)
