"""The training transforms of images and of batches.

In order: random resized crop, horizontal flip, policy, colour jitter (all on uint8), normalization, random erasing, Mixup or CutMix
(`mixup.py`). Everything is drawn from NumPy generators that the caller seeds, nothing from torch's global one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convnext_deploy.config.fit import Augmentation
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.data import augmentation_policies as policies
from convnext_deploy.data.ahead import upload
from convnext_deploy.data.device_noise import erased_places, normal_noise
from convnext_deploy.data.pixels import as_array

_ERASED_AREAS = (0.02, 1 / 3)  # of the image
_ERASED_RATIOS = (0.3, 1 / 0.3)
_ATTEMPTS = 10
_LARGEST_KEY = 1 << 62  # of the noise of an image that a GPU draws
_DRAWN_BY_HOST = ("cpu", "mps")  # noise, which then is the same as ever
_CUBIC = -0.5  # Keys' parameter, as in Pillow; OpenCV and torch.nn.functional have -0.75


def crop_and_flip(pixels: Tensor, boxes: NDArray[np.float64], flips: NDArray[np.bool_], size: ImageSize) -> Tensor:
    """Cut one box out of each image of a batch, resize it with antialiased bicubic interpolation and mirror where `flips`.

    The interpolation is Pillow's `resize(box=...)`: weighted sums along the rows, then along the columns, each of which is a
    product of matrices over the batch. `grid_sample(mode="bicubic")` has another kernel and no antialiasing.

    Args:
        pixels: `(N, H, W, C)` uint8.
        boxes: `(N, 4)` top, left, height, width in pixels, not rounded, inside the image.
        flips: `(N,)`.
        size: of the result.

    Returns: `(N, rows, columns, C)` uint8 on the device of `pixels`.
    """
    _, height, width, _ = pixels.shape
    to = sides_of(size)
    top, left, h, w = upload(torch.from_numpy(boxes.T.astype(np.float32, order="C")), pixels.device)
    mirrored = upload(torch.from_numpy(flips), pixels.device)
    rows = _cubic_weights(top, h, height, to[0])
    columns = _cubic_weights(torch.where(mirrored, left + w, left), torch.where(mirrored, -w, w), width, to[1])
    # Pillow rounds between the passes, and so do the large images that it resizes; without, overshoots would come out otherwise.
    count, _, _, channels = pixels.shape
    across = pixels.permute(0, 2, 1, 3).reshape(count, width, height * channels).float()
    across = (columns @ across).round_().clamp_(0, 255)
    down = across.view(count, to[1], height, channels).permute(0, 2, 1, 3).reshape(count, height, to[1] * channels)
    down = (rows @ down).round_().clamp_(0, 255)
    return down.to(torch.uint8).view(count, *to, channels)


def _cubic_weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return `(N, size, side)`: how much of each pixel is in each of `size` parts of `[start, start + length]`.

    Negative lengths go backwards.
    """
    step = (length / size)[:, None, None]
    scale = step.abs().clamp_(min=1.0)  # the kernel grows with the pixels of the result: antialiasing
    centres = start[:, None, None] + step * (torch.arange(size, device=start.device)[:, None] + 0.5)
    x = (torch.arange(side, device=start.device) + 0.5 - centres).div_(scale).abs_()
    # Keys' kernel, which is a cubic below 1 and another one below 2, without branches
    below_2, below_1 = (2.0 - x).clamp_(min=0.0), (1.0 - x).clamp_(min=0.0)
    outer = (1.0 - below_2).mul_(below_2).mul_(below_2).mul_(_CUBIC)
    inner = (3.0 + 4.0 * _CUBIC - 2.0 * below_1).mul_(below_1).mul_(below_1)
    weights = outer.add_(inner)
    return weights.div_(weights.sum(2, keepdim=True))


def change_colors_and_shapes(pixels: Tensor, plans: Sequence[policies.Operations]) -> Tensor:
    """Apply what `draw_operations` drew for each image.

    Args:
        pixels: `(N, S, S, C)` uint8.
        plans: each with N rows.

    Returns: the same shape, dtype and device; `pixels` itself when there is nothing to apply.
    """
    if not plans:
        return pixels
    images = pixels.permute(0, 3, 1, 2)
    for plan in plans:
        images = policies.apply_operations(images, plan)
    return images.permute(0, 2, 3, 1).contiguous()


def change_image(pixels: NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw for one image `(S, S, C)` uint8 and do what `change_colors_and_shapes` does, faster if the image is large."""
    plans = draw_operations(augmentation, rng, 1, min(pixels.shape[:2]))
    if not plans:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    for plan in plans:
        image = policies.apply_to_image(image, plan)
    return as_array(image)


def draw_operations(
    augmentation: Augmentation, rng: np.random.Generator, count: int, size: int
) -> list[policies.Operations]:
    """Draw the policy's operations and then those of the colour jitter, each as far as there is one, for `count` images.

    `size` is the shorter side of the images in pixels, which some magnitudes depend on.
    """
    plans: list[policies.Operations] = []
    if augmentation.augmentation_policy == "randaugment":
        operations, magnitude = augmentation.randaugment_ops, augmentation.randaugment_magnitude
        plans.append(policies.draw_randaugment(rng, count, size, operations, magnitude))
    elif augmentation.augmentation_policy == "autoaugment":
        plans.append(policies.draw_autoaugment(rng, count, size))
    elif augmentation.augmentation_policy == "trivialaugment":
        plans.append(policies.draw_trivialaugment(rng, count, size))
    if augmentation.color_jitter:
        plans.append(policies.draw_color_jitter(rng, count, augmentation.color_jitter))
    return plans


def draw_erasures(
    rng: np.random.Generator, count: int, height: int, width: int, probability: float
) -> NDArray[np.int64]:
    """Draw the rectangles of random erasing.

    Area uniform in [0.02, 1/3] of the image, aspect ratio log-uniform in [0.3, 1/0.3]; the first of 10 draws that is smaller than
    the image in both directions counts, and nothing is erased when none is.

    Returns: `(count, 4)` as top, left, height, width in pixels; height and width are 0 where nothing is erased.
    Source: Zhong et al. 2017, arXiv 1708.04896, algorithm 1.
    """
    area = rng.uniform(*_ERASED_AREAS, (count, _ATTEMPTS)) * height * width
    ratio = np.exp(rng.uniform(math.log(_ERASED_RATIOS[0]), math.log(_ERASED_RATIOS[1]), (count, _ATTEMPTS)))
    heights, widths = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
    fits = (heights < height) & (widths < width)
    rows, first = np.arange(count), fits.argmax(axis=1)
    erased = fits.any(axis=1) & (rng.uniform(size=count) < probability)
    h, w = np.where(erased, heights[rows, first], 0), np.where(erased, widths[rows, first], 0)
    return np.stack([rng.integers(height - h + 1), rng.integers(width - w + 1), h, w], axis=1)


def erase(images: Tensor, boxes: NDArray[np.int64], generator_of: Callable[[int], np.random.Generator]) -> Tensor:
    """Replace one rectangle of each image by noise, every pixel and channel drawn from N(0, 1).

    This comes after normalization, so that the noise has about the mean and the deviation of the images; noise is what ConvNeXt was
    trained with (`--remode pixel`), and in the paper it does better than a constant.

    Args:
        images: `(N, C, H, W)` float32, normalized.
        boxes: `(N, 4)` top, left, height, width in pixels.
        generator_of: where the noise of an image comes from, so that it does not depend on which others are in the batch. On a GPU
            it draws a key alone, and the GPU the noise.

    Returns: a new tensor, channels-last in memory.
    """
    _, channels, height, width = images.shape
    result = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    erased = np.flatnonzero(boxes[:, 2] * boxes[:, 3])
    generators = [generator_of(int(index)) for index in erased]
    if images.device.type in _DRAWN_BY_HOST:
        positions, noise = _noise_of_host(boxes, erased, generators, (height, width, channels))
        positions, noise = upload(positions, images.device), upload(noise, images.device)
    else:
        positions, image, within = erased_places(boxes, height, width, images.device)
        keys = np.zeros(len(boxes), np.int64)
        keys[erased] = [each.integers(_LARGEST_KEY) for each in generators]
        noise = normal_noise(upload(torch.from_numpy(keys), images.device)[image], within, channels)
    result.view(-1, channels)[positions] = noise
    return result.permute(0, 3, 1, 2)


def _noise_of_host(
    boxes: NDArray[np.int64],
    erased: NDArray[Any],
    generators: Sequence[np.random.Generator],
    shape: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Return the places `(P,)` of what is erased in a batch, in pixels, and the noise for it `(P, C)`."""
    height, width, channels = shape
    top, left, h, w = boxes.T[:, :, None]
    row, column = np.arange(height), np.arange(width)
    inside_rows, inside_columns = (row >= top) & (row < top + h), (column >= left) & (column < left + w)
    positions = np.flatnonzero(inside_rows[:, :, None] & inside_columns[:, None, :])
    parts = [
        each.standard_normal((boxes[index, 2] * boxes[index, 3], channels), np.float32)
        for index, each in zip(erased, generators, strict=True)
    ]
    noise = np.concatenate([np.empty((0, channels), np.float32), *parts])
    return torch.from_numpy(positions), torch.from_numpy(noise)
