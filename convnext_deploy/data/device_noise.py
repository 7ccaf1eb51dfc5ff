"""Normal noise drawn on a GPU, of which every number depends on its image's key and its place in it alone."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.data.ahead import upload

_GOLDEN, _FIRST, _SECOND = (
    int(np.uint64(constant).astype(np.int64))
    for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_BITS = 24  # of a uniform number in float32


def erased_places(
    boxes: NDArray[np.int64], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels in rectangles, of which image each is, and its number in its rectangle; all `(P,)` int64.

    The host knows how many there are, so that it does not wait for the device to count them.

    Args:
        boxes: `(N, 4)` top, left, height, width in pixels.
        height: of an image.
        width: of an image; pixels are counted through all N of them, row by row.
        device: where the result is.
    """
    counts = boxes[:, 2] * boxes[:, 3]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    top, left, _, columns, total, start = (
        upload(torch.from_numpy(np.ascontiguousarray(each)), device) for each in (*boxes.T, counts, starts)
    )
    image = torch.repeat_interleave(torch.arange(len(boxes), device=device), total, output_size=int(counts.sum()))
    within = torch.arange(len(image), device=device) - start[image]
    row = top[image] + within // columns[image].clamp(min=1)
    column = left[image] + within % columns[image].clamp(min=1)
    return (image * height + row) * width + column, image, within


def normal_noise(keys: Tensor, numbers: Tensor, channels: int) -> Tensor:
    """Return `(P, channels)` float32 from N(0, 1): the same for the same key and number.

    Args:
        keys: of the image of each pixel, `(P,)` int64.
        numbers: of the pixel within its rectangle, `(P,)` int64.
        channels: of an image.

    Source: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") as a function of a counter,
        and Box and Muller 1958.
    """
    counter = numbers[:, None] * channels + torch.arange(channels, device=numbers.device)
    bits = _mix(keys[:, None] + (counter + 1) * _GOLDEN)
    radius, angle = (
        ((part & ((1 << _BITS) - 1)).float() + 0.5) / (1 << _BITS) for part in (_shift(bits, 64 - _BITS), bits)
    )
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * angle)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right, with zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
