"""Augmentation policies: every image gets operations and magnitudes of its own, drawn from a NumPy generator.

An operation computes for each image what torchvision's computes for it alone. Torchvision's policies make one draw for a whole
batch, so that they would have to run image by image, with dozens of kernel launches for each on a GPU; here images are grouped by
operation. They also draw from torch's global generator, which belongs to the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convnext_deploy.data.ahead import upload
from convnext_deploy.data.torchvision_functions import functions

LEVELS = 31  # magnitudes of RandAugment and TrivialAugmentWide: 0 to 30

_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_SIGNED = (*_GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness")
# of RandAugment and TrivialAugmentWide
_OPERATIONS = ("Identity", *_SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")
# names of torchvision's functions
_PLAIN = {"AutoContrast": "autocontrast", "Equalize": "equalize", "Invert": "invert"}
_ADJUST = {
    "Brightness": "adjust_brightness",
    "Color": "adjust_saturation",
    "Contrast": "adjust_contrast",
    "Sharpness": "adjust_sharpness",
}
_BILINEAR = Image.Resampling.BILINEAR
# pixels; up to here AutoAugment's policies for CIFAR-10, which were learned on 32 pixels, above those for ImageNet
_CIFAR_SIDE = 96
_CIFAR_10 = (
    "Invert 1 0 Contrast 2 6, Rotate 7 2 TranslateX 3 9, Sharpness 8 1 Sharpness 9 3, ShearY 5 8 TranslateY 7 9, "
    "AutoContrast 5 0 Equalize 9 0, ShearY 2 7 Posterize 3 7, Color 4 3 Brightness 6 7, Sharpness 3 9 Brightness 7 9, "
    "Equalize 6 0 Equalize 5 0, Contrast 6 7 Sharpness 6 5, Color 7 7 TranslateX 5 8, Equalize 3 0 AutoContrast 4 0, "
    "TranslateY 4 3 Sharpness 2 6, Brightness 9 6 Color 2 8, Solarize 5 2 Invert 0 0, Equalize 2 0 AutoContrast 6 0, "
    "Equalize 2 0 Equalize 6 0, Color 9 9 Equalize 6 0, AutoContrast 8 0 Solarize 2 8, Brightness 1 3 Color 7 0, "
    "Solarize 4 5 AutoContrast 9 0, TranslateY 9 9 TranslateY 7 9, AutoContrast 9 0 Solarize 8 3, Equalize 8 0 Invert 1 0, "
    "TranslateY 7 9 AutoContrast 9 0"
)
_IMAGENET = (
    "Posterize 4 8 Rotate 6 9, Solarize 6 5 AutoContrast 6 0, Equalize 8 0 Equalize 6 0, Posterize 6 7 Posterize 6 6, "
    "Equalize 4 0 Solarize 2 4, Equalize 4 0 Rotate 8 8, Solarize 6 3 Equalize 6 0, Posterize 8 5 Equalize 10 0, "
    "Rotate 2 3 Solarize 6 8, Equalize 6 0 Posterize 4 6, Rotate 8 8 Color 4 0, Rotate 4 9 Equalize 6 0, "
    "Equalize 0 0 Equalize 8 0, Invert 6 0 Equalize 10 0, Color 6 4 Contrast 10 8, Rotate 8 8 Color 10 2, "
    "Color 8 8 Solarize 8 7, Sharpness 4 7 Invert 6 0, ShearX 6 5 Equalize 10 0, Color 4 0 Equalize 6 0, "
    "Equalize 4 0 Solarize 2 4, Solarize 6 5 AutoContrast 6 0, Invert 6 0 Equalize 10 0, Color 6 4 Contrast 10 8, "
    "Equalize 8 0 Equalize 6 0"
)
"""Pairs of operations, each with its probability in tenths and its magnitude, 0 to 9: arXiv 1805.09501, tables 7 and 9."""


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
    chosen = rng.integers(len(_OPERATIONS), size=(count, operations))
    return _draw_signs(rng, np.array(_OPERATIONS)[chosen], np.full(chosen.shape, magnitude), _magnitudes(LEVELS, size))


def draw_trivialaugment(rng: np.random.Generator, count: int, size: int) -> Operations:
    """Draw one operation out of 14 for each image, and one of 31 magnitudes over a wide range.

    Source: Müller and Hutter 2021, arXiv 2103.10158.
    """
    chosen = rng.integers(len(_OPERATIONS), size=(count, 1))
    levels = rng.integers(LEVELS, size=chosen.shape)
    return _draw_signs(rng, np.array(_OPERATIONS)[chosen], levels, _magnitudes(LEVELS, size, wide=True))


def draw_autoaugment(rng: np.random.Generator, count: int, size: int) -> Operations:
    """Draw one of the 25 learned pairs of operations for each image: those for CIFAR-10 up to 96 pixels, for ImageNet above.

    Source: Cubuk et al. 2018, arXiv 1805.09501, tables 7 and 9.
    """
    pairs = np.array([pair.split() for pair in (_CIFAR_10 if size <= _CIFAR_SIDE else _IMAGENET).split(", ")])
    chosen = pairs[rng.integers(len(pairs), size=count)]
    names, probabilities, levels = chosen[:, 0::3], chosen[:, 1::3].astype(float) / 10, chosen[:, 2::3].astype(int)
    drawn = _draw_signs(rng, names, levels, _magnitudes(10, size))
    applied = rng.uniform(size=drawn.names.shape) < probabilities
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
                index = upload(torch.from_numpy(rows), images.device)
                images[index] = _apply(group, images[index], names[rows], magnitudes[rows])
    return images


def apply_to_image(image: Image.Image, operations: Operations) -> Image.Image:
    """Apply the operations of one image, of which `operations` has the only row, with torchvision on Pillow.

    For one large image this is several times faster than tensors are.
    """
    for name, magnitude in zip(operations.names[0], operations.magnitudes[0].tolist(), strict=True):
        if name in _PLAIN:
            image = getattr(functions(), _PLAIN[name])(image)
        elif name in _ADJUST:
            image = getattr(functions(), _ADJUST[name])(image, 1.0 + magnitude)
        elif name == "Posterize":
            image = functions().posterize(image, int(magnitude))
        elif name == "Solarize":
            image = functions().solarize(image, 255.0 * magnitude)
        elif name == "Rotate":
            image = functions().rotate(image, magnitude, _BILINEAR)
        elif name.startswith("Shear"):
            degrees = math.degrees(math.atan(magnitude))
            shear = [degrees, 0.0] if name == "ShearX" else [0.0, degrees]
            image = functions().affine(image, 0.0, [0, 0], 1.0, shear, _BILINEAR, center=[0, 0])
        elif name != "Identity":
            translate = [int(magnitude), 0] if name == "TranslateX" else [0, int(magnitude)]
            image = functions().affine(image, 0.0, translate, 1.0, [0.0, 0.0], _BILINEAR)
    return image


def _draw_signs(
    rng: np.random.Generator, names: NDArray[np.str_], levels: NDArray[Any], magnitudes: dict[str, NDArray[np.float64]]
) -> Operations:
    """Return operations of these names and levels, `(N, K)`; magnitudes with a sign are negative with equal chance."""
    negative = (rng.uniform(size=names.shape) < 0.5) & np.isin(names, _SIGNED)
    found = np.zeros(names.shape)
    for name, values in magnitudes.items():
        found = np.where(names == name, values[levels], found)
    return Operations(names, np.where(negative, -found, found))


def _magnitudes(levels: int, size: int, *, wide: bool = False) -> dict[str, NDArray[np.float64]]:
    """Return the magnitudes of each operation that has some, `(levels,)`: of TrivialAugmentWide, or of the other two.

    Numbers are torchvision's, which has them from the papers' code: shears as tangents, translations in pixels, rotations in
    degrees, changes of factors, bits, and thresholds in [0, 1].
    """
    largest = {
        **dict.fromkeys(("ShearX", "ShearY"), 0.99 if wide else 0.3),
        **dict.fromkeys(("TranslateX", "TranslateY"), 32.0 if wide else 150.0 / 331.0 * size),
        "Rotate": 135.0 if wide else 30.0,
        **dict.fromkeys(_ADJUST, 0.99 if wide else 0.9),
    }
    bits = (8 - torch.arange(levels) / ((levels - 1) / (6 if wide else 4))).round()
    tables = {name: torch.linspace(0.0, end, levels) for name, end in largest.items()}
    tables |= {"Posterize": bits, "Solarize": torch.linspace(1.0, 0.0, levels)}
    return {name: values.double().numpy() for name, values in tables.items()}


def _apply(group: str, images: Tensor, names: NDArray[np.str_], magnitudes: NDArray[np.float64]) -> Tensor:
    """Apply one operation, or several geometric ones: `(N, C, H, W)` uint8 with `(N,)` magnitudes."""
    if group == "Geometric":
        return _resample(images, names, magnitudes)
    if group in _PLAIN:
        return getattr(functions(), _PLAIN[group])(images)  # type: ignore[no-any-return]  # torchvision is untyped
    if group == "Solarize":
        return torch.where(images >= _per_image(255 * magnitudes, images), 255 - images, images)
    if group == "Posterize":
        masks = 0xFF << (8 - magnitudes.astype(np.int64)) & 0xFF
        return images & _per_image(masks, images).to(torch.uint8)
    # An image far from or near to its degenerate one; the latter is torchvision's, because at factor 0 nothing else is left.
    if group == "Contrast":  # not rounded
        degenerate = functions().rgb_to_grayscale(images).float().mean((1, 2, 3), keepdim=True)
    else:
        degenerate = getattr(functions(), _ADJUST[group])(images, 0.0)
    # exact where both are equal, unlike a sum of two products
    blended = torch.lerp(degenerate.float().expand(images.shape), images.float(), _per_image(1.0 + magnitudes, images))
    return blended.clamp_(0, 255).to(torch.uint8)


def _per_image(values: NDArray[Any], images: Tensor) -> Tensor:
    return upload(torch.from_numpy(values.astype(np.float32)), images.device)[:, None, None, None]


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
    theta = upload(torch.from_numpy((matrix * half / half[:2, None]).astype(np.float32)), images.device)
    grid = F.affine_grid(theta, [count, channels, height, width], align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round_().to(torch.uint8)
