"""Decode small images once and keep them as uint8, in memory or in a file that is mapped into it."""

import contextlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.artifacts.hashes import hash_file
from convnext_deploy.data.datasets import ImageSet
from convnext_deploy.data.kept_pixels import LARGEST_SIDE
from convnext_deploy.data.pixels import as_array, to_channels
from convnext_deploy.system.disk_faults import CACHE_DIR
from convnext_deploy.system.files import whole_file
from convnext_deploy.system.posix import reserve

LARGEST_IN_MEMORY = 2 << 30  # bytes
_DAY_S = 86_400.0
_CHECKSUM = 32  # bytes of SHA-256 after the array, of all before it
RESULT_VERSION = 2
"""In the name of a file of pixels: raised when an image is decoded to other pixels, or the layout of the file changes."""


@dataclass(frozen=True)
class PixelCache:
    """All images of a set, `(N, H, W, C)` uint8 on the CPU; `is_mapped` when they are read from a file as they are asked for."""

    pixels: Tensor
    is_mapped: bool

    def on(self, device: str) -> Tensor:
        """Return the images on a device, or where they are when they are more than it should hold."""
        return self.pixels.to(device) if self.pixels.nbytes <= LARGEST_IN_MEMORY else self.pixels


def decode_small(
    images: ImageSet, channels: int, file: Path | None = None, most_in_memory: int = LARGEST_IN_MEMORY
) -> PixelCache | None:
    """Decode all images of a set if they are small.

    Args:
        images: any set.
        channels: 1 (grey) or 3 (RGB).
        file: where pixels go that are too many for the memory, as a NumPy file with a checksum at its end; one that exists and is
            unaltered is taken, so its name must tell the images. None: such sets are not kept.
        most_in_memory: bytes that may be kept in memory.

    Returns: None when images have more than 96 pixels on a side, differ in size, or are too many and there is no `file`.

    Raises:
        DataError: if an image cannot be read.
        OutputError: if the file cannot be written.
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
    if file is None or not _write(file, shape, images):
        return None
    return _map(file, len(images), channels)


def _write(file: Path, shape: tuple[int, int, int, int], images: ImageSet) -> bool:
    """Decode into a file, completely or not at all, and return whether all images have one size."""
    _remove_leftovers(file.parent)
    try:
        with whole_file(
            file, needed=math.prod(shape), what="decoded images", instead=CACHE_DIR, shared=True
        ) as partial:
            mapped = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            with partial.open("r+b") as opened:
                # what is mapped and finds no room ends the process when it is written
                reserve(opened.fileno(), partial.stat().st_size + _CHECKSUM)
            if not _fill(mapped, images):
                raise _SizesDifferError
            mapped.flush()
            del mapped  # Windows moves no file that is mapped
            checksum = bytes.fromhex(hash_file(partial, end=_CHECKSUM))
            with partial.open("r+b") as opened:
                opened.seek(-_CHECKSUM, os.SEEK_END)
                opened.write(checksum)
    except _SizesDifferError:
        return False
    return True


class _SizesDifferError(Exception):
    """Images of one set have several sizes."""


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left; a living one writes more often than once a day."""
    for leftover in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _DAY_S:
                leftover.unlink()


def _fill(pixels: NDArray[np.uint8], images: ImageSet) -> bool:
    """Decode into an array, and return whether all images have its size."""
    _, height, width, channels = pixels.shape
    for index in range(len(images)):
        image = images.load(index)
        if image.size != (width, height):
            return False
        pixels[index] = as_array(to_channels(image, channels))
    return True


def _map(file: Path, count: int, channels: int) -> PixelCache | None:
    """Map a file that holds so many images; None when it does not exist, is another one, or was altered."""
    try:
        # "c": nothing is ever written into the file, and torch warns of arrays that cannot be written
        found = np.lib.format.open_memmap(file, mode="c")
        is_whole = file.stat().st_size == found.offset + found.nbytes + _CHECKSUM and _is_unaltered(file)
    except Exception:  # a file that cannot be read, for whatever reason, is no file
        return None
    if not is_whole or found.dtype != np.uint8 or found.ndim != 4 or found.shape[::3] != (count, channels):
        return None
    return PixelCache(torch.from_numpy(found), True)


def _is_unaltered(file: Path) -> bool:
    """Whether the checksum at the end of a file is that of what stands before it."""
    with file.open("rb") as opened:
        opened.seek(-_CHECKSUM, os.SEEK_END)
        return opened.read().hex() == hash_file(file, end=_CHECKSUM)
