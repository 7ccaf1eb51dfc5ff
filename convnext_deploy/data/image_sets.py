"""Labelled images as training and evaluation take them, whatever they are kept in."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.data.contents import Contents, names_below
from convnext_deploy.data.decoding import read_image


class ImageSet(Protocol):
    """Labelled images."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, `(N,)`; of multi-label data `(N, classes)`: 1, 0 or `metrics.multi_label.UNKNOWN`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def load(self, index: int) -> Image.Image:
        """Decode an image, upright, 8-bit grey or RGB. Raises: DataError: naming the file, if it cannot be read."""

    def content(self, index: int) -> bytes:
        """Return the encoded bytes; equal bytes are equal images."""

    def size_hint(self, index: int) -> int:
        """Return a number that is equal for equal contents, without reading them where possible."""


@dataclass(frozen=True)
class FolderImages:
    """Files of an image folder."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        return read_image(self.paths[index])

    def content(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def size_hint(self, index: int) -> int:
        """Size of the file in bytes."""
        return self.paths[index].stat().st_size

    def identify(self, root: Path, contents: Contents) -> bytes:
        """Return a hash of the names below a folder and of what the files hold."""
        # names are bytes to the system, and not always valid text
        digest = hashlib.sha256(b"\0".join(os.fsencode(name) for name in names_below(root, self.paths)))
        digest.update(contents.read(self.paths).tobytes())
        return digest.digest()


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, `(N, H, W, C)` uint8."""

    arrays: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrays)

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.arrays[index])

    def content(self, index: int) -> bytes:
        content: bytes = self.arrays[index].tobytes()
        return content

    def size_hint(self, index: int) -> int:
        """Sum of all pixel values."""
        return int(self.arrays[index].sum())

    def identify(self, root: Path, contents: Contents) -> bytes:
        """Return a hash of the pixels; both arguments are for files."""
        return hashlib.sha256(repr(self.arrays.shape).encode() + self.arrays.tobytes()).digest()
