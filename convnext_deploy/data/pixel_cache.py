"""Small images decoded once and kept as uint8: in memory, or in a file that is mapped into it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.data import transforms
from convnext_deploy.data.sources import ImageSet

LARGEST_SIDE = 96  # pixels; larger images are decoded again in every epoch
LARGEST_IN_MEMORY = 2 << 30  # bytes


@dataclass(frozen=True)
class PixelCache:
    """All images of a set, `(N, H, W, C)` uint8 on the CPU; `is_mapped` when they are read from a file as they are asked for."""

    pixels: Tensor
    is_mapped: bool


def decode_small(
    images: ImageSet, channels: int, file: Path | None = None, most_in_memory: int = LARGEST_IN_MEMORY
) -> PixelCache | None:
    """Decode all images of a set if they are small.

    Args:
        images: any set.
        channels: 1 (grey) or 3 (RGB).
        file: where pixels go that are too many for the memory, as a NumPy file; one that exists is taken as it is, so its name must
            tell the images. None: such sets are not kept.
        most_in_memory: bytes that may be kept in memory.

    Returns: None when images have more than 96 pixels on a side, differ in size, or are too many and there is no `file`.
    Raises: DataError: if an image cannot be read.
    """
    if file is not None and (found := _map(file, len(images), channels)) is not None:
        return found
    first = images.load(0)
    if max(first.size) > LARGEST_SIDE:
        return None
    shape = (len(images), first.height, first.width, channels)
    if np.prod(shape, dtype=np.int64) <= most_in_memory:
        pixels = np.empty(shape, np.uint8)
        return PixelCache(torch.from_numpy(pixels), False) if _fill(pixels, images) else None
    if file is None:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        mapped = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        if not _fill(mapped, images):
            return None
        mapped.flush()
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return _map(file, len(images), channels)


def _fill(pixels: NDArray[np.uint8], images: ImageSet) -> bool:
    """Decode into an array, and return whether all images have its size."""
    _, height, width, channels = pixels.shape
    for index in range(len(images)):
        image = images.load(index)
        if image.size != (width, height):
            return False
        pixels[index] = transforms.as_array(transforms.to_channels(image, channels))
    return True


def _map(file: Path, count: int, channels: int) -> PixelCache | None:
    """Map a file that holds so many images; None when it does not exist or is another one."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        # "c": nothing is ever written into the file, and torch warns of arrays that cannot be written
        found = np.load(file, mmap_mode="c")
        if found.dtype == np.uint8 and found.ndim == 4 and (found.shape[0], found.shape[3]) == (count, channels):
            return PixelCache(torch.from_numpy(found), True)
    return None
