"""Resize, crop and normalize decoded images, for evaluation and for training."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.data.ahead import upload
from convnext_deploy.data.pixels import as_array, evaluation_pixels
from convnext_deploy.data.torchvision_functions import functions

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10


def evaluation_transform(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Return what `evaluation_pixels` makes of an image: `(height, width, C)` uint8."""
    return evaluation_pixels(image, {**preprocess.settings(), "resize_size": preprocess.resize_size})


def normalize(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Map `(N, H, W, C)` uint8 (or float in 0..255) to normalized `(N, C, H, W)` float32, channels-last in memory."""
    mean, std = (upload(torch.tensor(each), pixels.device) for each in (preprocess.mean, preprocess.std))
    return ((pixels.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)


def sample_crops(
    rng: np.random.Generator, count: int, height: int, width: int, scale_min: float
) -> NDArray[np.float64]:
    """Draw the boxes of random resized crops.

    Area uniform in [scale_min, 1] of the image, aspect ratio log-uniform in [3/4, 4/3]; the first of 10 draws that fits
    counts, and the largest centred box of such a ratio when none does.

    Returns: `(count, 4)` as top, left, height, width in pixels, not rounded.
    Source: Szegedy et al. 2015, arXiv 1409.4842, section 6.
    """
    area = rng.uniform(scale_min, 1.0, (count, _CROP_ATTEMPTS)) * height * width
    low, high = np.log(_ASPECT_RATIOS)
    ratio = np.exp(rng.uniform(low, high, (count, _CROP_ATTEMPTS)))
    widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (widths <= width) & (heights <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    narrow, wide = _ASPECT_RATIOS
    w = np.where(fits.any(axis=1), widths[rows, first], min(width, height * wide))
    h = np.where(fits.any(axis=1), heights[rows, first], min(height, width / narrow))
    top = np.where(fits.any(axis=1), rng.uniform(0, 1, count), 0.5) * (height - h)
    left = np.where(fits.any(axis=1), rng.uniform(0, 1, count), 0.5) * (width - w)
    return np.stack([top, left, h, w], axis=1)


def crop_image(image: Image.Image, box: NDArray[np.float64], flip: bool, size: ImageSize) -> NDArray[np.uint8]:
    """Cut a box out of one image with bicubic antialiased resizing to a size: `(height, width, C)` uint8."""
    top, left, height, width = whole_pixels(box)
    image = functions().resized_crop(image, top, left, height, width, list(sides_of(size)), Image.Resampling.BICUBIC)
    return as_array(functions().horizontal_flip(image) if flip else image)


def whole_pixels(box: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a box in whole pixels, inside the image as the box is."""
    return int(box[0]), int(box[1]), max(1, round(box[2])), max(1, round(box[3]))
