"""Augmentation policies: every image gets operations and magnitudes of its own, drawn from a NumPy generator.

Operations, magnitudes and learned policies are torchvision's own tables, and an operation computes for each image what torchvision
computes for it alone. Its transforms themselves make one draw for a whole batch, so that they would have to run image by image,
with dozens of kernel launches for each on a GPU; here images are grouped by operation. They also draw from torch's global
generator, which belongs to the training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

LEVELS = 31  # magnitudes of RandAugment and TrivialAugmentWide: 0 to 30

_AUTOAUGMENT_LEVELS = 10
_CIFAR_SIDE = (
    96  # pixels; up to here AutoAugment's CIFAR-10 policies, which were learned on 32, above its ImageNet policies
)
_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@dataclass(frozen=True)
class Operations:
    """What to do to each of `N` images: `names` `(N, K)` in order, and signed `magnitudes` `(N, K)`, 0 where they have none."""

    names: NDArray[np.str_]
    magnitudes: NDArray[np.float64]

    def select(self, rows: Callable[[NDArray[Any]], NDArray[Any]]) -> Operations:
        """Return the operations of the rows that `rows` takes out of an array of all."""
        return Operations(rows(self.names), rows(self.magnitudes))


def draw_randaugment(
    rng: np.random.Generator, count: int, size: int, operations: int = 2, magnitude: int = 9
) -> Operations:
    """Draw `operations` operations out of 14 for each image, all with equal chance and of one magnitude, 0 to 30.

    Source: Cubuk et al. 2019, arXiv 1909.13719.
    """
    table = _table("RandAugment", LEVELS, size)
    chosen = rng.integers(len(table.names), size=(count, operations))
    return table.operations(rng, chosen, np.full(chosen.shape, magnitude))


def draw_trivialaugment(rng: np.random.Generator, count: int, size: int) -> Operations:
    """Draw one operation out of 14 for each image, and one of 31 magnitudes over a wide range.

    Source: Müller and Hutter 2021, arXiv 2103.10158.
    """
    table = _table("TrivialAugmentWide", LEVELS, size)
    chosen = rng.integers(len(table.names), size=(count, 1))
    return table.operations(rng, chosen, rng.integers(LEVELS, size=chosen.shape))


def draw_autoaugment(rng: np.random.Generator, count: int, size: int) -> Operations:
    """Draw one of the 25 learned pairs of operations for each image: those for CIFAR-10 up to 96 pixels, for ImageNet above.

    Source: Cubuk et al. 2018, arXiv 1805.09501, tables 7 and 9.
    """
    table = _table("AutoAugment", _AUTOAUGMENT_LEVELS, size)
    learned = v2.AutoAugmentPolicy.CIFAR10 if size <= _CIFAR_SIDE else v2.AutoAugmentPolicy.IMAGENET
    pairs = v2.AutoAugment(learned)._policies
    codes = np.array([[table.names.index(name) for name, _, _ in pair] for pair in pairs])
    probabilities = np.array([[probability for _, probability, _ in pair] for pair in pairs])
    levels = np.array([[level or 0 for _, _, level in pair] for pair in pairs])
    chosen = rng.integers(len(pairs), size=count)
    drawn = table.operations(rng, codes[chosen], levels[chosen])
    applied = rng.uniform(size=drawn.names.shape) < probabilities[chosen]
    return Operations(np.where(applied, drawn.names, "Identity"), np.where(applied, drawn.magnitudes, 0.0))


def draw_color_jitter(rng: np.random.Generator, count: int, strength: float) -> Operations:
    """Draw factors of brightness, contrast and saturation uniform in 1 ± `strength` (at least 0), and their order."""
    names = rng.permuted(np.tile(("Brightness", "Contrast", "Color"), (count, 1)), axis=1)
    return Operations(names, rng.uniform(max(-strength, -1.0), strength, names.shape))


def apply_operations(images: Tensor, operations: Operations) -> Tensor:
    """Apply the operations of each image in their order.

    Args:
        images: `(N, C, H, W)` uint8, grey or RGB.
        operations: `N` rows.

    Returns: a new tensor of the same shape and dtype, on the same device.
    """
    images = images.clone(memory_format=torch.contiguous_format)
    for names, magnitudes in zip(operations.names.T, operations.magnitudes.T, strict=True):
        # one resampling for all geometric operations, whatever they are
        groups = np.where(np.isin(names, _GEOMETRIC), "Geometric", names)
        for group in np.unique(groups):
            if group != "Identity":
                rows = np.flatnonzero(groups == group)
                index = torch.from_numpy(rows).to(images.device)
                images[index] = _apply(group, images[index], names[rows], magnitudes[rows])
    return images


def apply_to_image(image: Image.Image, operations: Operations) -> Image.Image:
    """Apply the operations of one image, of which `operations` has the only row, with torchvision on Pillow.

    For one large image this is several times faster than tensors are.
    """
    transform = v2.AutoAugment(interpolation=v2.InterpolationMode.BILINEAR)
    for name, magnitude in zip(operations.names[0], operations.magnitudes[0], strict=True):
        image = transform._apply_image_or_video_transform(
            image, name, float(magnitude), transform.interpolation, transform._fill
        )
    return image


@dataclass(frozen=True)
class _Table:
    """`magnitudes` `(operations, levels)` and which of them are positive or negative with equal chance."""

    names: tuple[str, ...]
    magnitudes: NDArray[np.float64]
    signed: NDArray[np.bool_]

    def operations(self, rng: np.random.Generator, chosen: NDArray[Any], levels: NDArray[Any]) -> Operations:
        negative = (rng.uniform(size=chosen.shape) < 0.5) & self.signed[chosen]
        magnitudes = self.magnitudes[chosen, levels]
        return Operations(np.array(self.names)[chosen], np.where(negative, -magnitudes, magnitudes))


@functools.cache
def _table(transform: str, levels: int, size: int) -> _Table:
    space: dict[str, Any] = getattr(v2, transform)._AUGMENTATION_SPACE
    found = [magnitudes(levels, size, size) for magnitudes, _ in space.values()]
    values = np.stack([np.zeros(levels) if row is None else row.double().numpy() for row in found])
    return _Table(tuple(space), values, np.array([signed for _, signed in space.values()]))


def _apply(group: str, images: Tensor, names: NDArray[np.str_], magnitudes: NDArray[np.float64]) -> Tensor:
    """Apply one operation, or several geometric ones: `(N, C, H, W)` uint8 with `(N,)` magnitudes."""
    if group == "Geometric":
        return _resample(images, names, magnitudes)
    if group == "AutoContrast":
        stretched: Tensor = TF.autocontrast(images)
        return stretched
    if group == "Equalize":
        equalized: Tensor = TF.equalize(images)
        return equalized
    if group == "Invert":
        return 255 - images
    if group == "Solarize":
        return torch.where(images >= _per_image(255 * magnitudes, images), 255 - images, images)
    if group == "Posterize":
        masks = 0xFF << (8 - magnitudes.astype(np.int64)) & 0xFF
        return images & _per_image(masks, images).to(torch.uint8)
    # An image far from or near to its degenerate one; the latter is torchvision's, because at factor 0 nothing else is left.
    if group == "Brightness":
        degenerate = torch.zeros_like(images)
    elif group == "Contrast":
        degenerate = TF.rgb_to_grayscale(images).float().mean((1, 2, 3), keepdim=True)
    elif group == "Color":
        if images.shape[1] == 1:
            return images  # grey has no saturation
        degenerate = TF.adjust_saturation(images, 0.0)
    elif group == "Sharpness":
        degenerate = TF.adjust_sharpness(images, 0.0)
    else:
        raise AssertionError(f"no such operation: {group}")
    # exact where both are equal, unlike a sum of two products
    blended = torch.lerp(degenerate.float().expand(images.shape), images.float(), _per_image(1.0 + magnitudes, images))
    return blended.clamp_(0, 255).to(torch.uint8)


def _per_image(values: NDArray[Any], images: Tensor) -> Tensor:
    return torch.from_numpy(values).to(images.device, torch.float32)[:, None, None, None]


def _resample(images: Tensor, names: NDArray[np.str_], magnitudes: NDArray[np.float64]) -> Tensor:
    """Shear, translate or rotate each image, bilinearly and with black outside."""
    count, channels, height, width = images.shape
    angle = np.deg2rad(np.where(names == "Rotate", magnitudes, 0.0))
    # From a place in the result to one in the image, in pixels from the centre. Shears keep the upper left corner.
    matrix = np.zeros((count, 2, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(angle)
    matrix[:, 1, 0] = np.sin(angle) + np.where(names == "ShearY", magnitudes, 0.0)
    matrix[:, 0, 1] = -np.sin(angle) + np.where(names == "ShearX", magnitudes, 0.0)
    pixels = np.trunc(magnitudes)
    matrix[:, 0, 2] = np.where(
        names == "ShearX", magnitudes * height / 2, np.where(names == "TranslateX", -pixels, 0.0)
    )
    matrix[:, 1, 2] = np.where(names == "ShearY", magnitudes * width / 2, np.where(names == "TranslateY", -pixels, 0.0))
    # affine_grid counts in halves of the image
    half = np.array([width / 2, height / 2, 1.0])
    theta = torch.from_numpy(matrix * half / half[:2, None]).to(images.device, torch.float32)
    grid = F.affine_grid(theta, [count, channels, height, width], align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round_().to(torch.uint8)
