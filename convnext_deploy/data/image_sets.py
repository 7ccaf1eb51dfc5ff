"""Labelled images as training and evaluation take them, whatever they are kept in."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import Encoded, decode_image, encoded_file
from convnext_deploy.data.files import Files, as_files
from convnext_deploy.data.kept_pixels import KeptPixels
from convnext_deploy.errors import RecipeError
from convnext_deploy.metrics.multi_label import UNKNOWN


class ImageSet(Protocol):
    """Labelled images."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, `(N,)`; of multi-label data `(N, classes)`: 1, 0 or `metrics.multi_label.UNKNOWN`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def load(self, index: int) -> Image.Image:
        """Decode an image, upright, 8-bit grey or RGB. Raises: DataError: naming the file, if it cannot be read."""

    def encoded(self, index: int) -> Encoded | None:
        """Return what an image is decoded from; None: its pixels are in memory."""

    def content(self, index: int) -> bytes:
        """Return the encoded bytes; equal bytes are equal images."""

    def size_hint(self, index: int) -> int:
        """Return a number that is equal for equal contents, without reading them where possible."""


@dataclass(frozen=True)
class FolderImages:
    """Files of an image folder."""

    paths: Sequence[Path]
    labels: NDArray[np.int64]

    @cached_property
    def files(self) -> Files:
        """The paths as columns."""
        return as_files(self.paths)

    @cached_property
    def kept(self) -> KeptPixels:
        """What evaluation keeps of them."""
        return KeptPixels()

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        return decode_image(self.encoded(index))

    def encoded(self, index: int) -> Encoded:
        return encoded_file(self.paths[index])

    def content(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def size_hint(self, index: int) -> int:
        """Size of the file in bytes."""
        return self.files.size(index)

    def identify(self, root: Path, contents: Contents) -> bytes:
        """Return a hash of the names below a folder and of what the files hold."""
        digest = hashlib.sha256(b"\0".join(self.files.names_below(root)))
        digest.update(contents.read(self.files).tobytes())
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

    def encoded(self, index: int) -> None:
        return None

    def content(self, index: int) -> bytes:
        content: bytes = self.arrays[index].tobytes()
        return content

    def size_hint(self, index: int) -> int:
        """Sum of all pixel values."""
        return int(self.arrays[index].sum())

    def identify(self, root: Path, contents: Contents) -> bytes:
        """Return a hash of the pixels; both arguments are for files."""
        return hashlib.sha256(repr(self.arrays.shape).encode() + self.arrays.tobytes()).digest()


@dataclass(frozen=True)
class TaughtImages:
    """Training images of which the last have no labels, so that teachers alone speak of them: theirs are `UNKNOWN`.

    `share`: of the images of a training batch, that are such; above 0, and 1 where there are no others. `root`: the folder of the
    images without labels.
    """

    labelled: ImageSet
    unlabelled: ImageSet
    share: float
    root: Path

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, `UNKNOWN` where there are none; see `ImageSet`."""
        known = self.labelled.labels
        return np.concatenate([known, np.full((len(self.unlabelled), *known.shape[1:]), UNKNOWN, np.int64)])

    def part(self, index: int) -> tuple[ImageSet, int]:
        """Return the set that an image is of, and its number there."""
        first = len(self.labelled)
        return (self.labelled, index) if index < first else (self.unlabelled, index - first)

    def load(self, index: int) -> Image.Image:
        images, own = self.part(index)
        return images.load(own)

    def encoded(self, index: int) -> Encoded | None:
        images, own = self.part(index)
        return images.encoded(own)

    def content(self, index: int) -> bytes:
        images, own = self.part(index)
        return images.content(own)

    def size_hint(self, index: int) -> int:
        images, own = self.part(index)
        return images.size_hint(own)

    def identify(self, root: Path, contents: Contents) -> bytes:
        """Return a hash of both parts, of which the one without labels lies elsewhere, and of the share."""
        digest = hashlib.sha256(repr(self.share).encode())
        for images, folder in ((self.labelled, root), (self.unlabelled, self.root)):
            identify = getattr(images, "identify", None)  # which parts of sets do not have
            digest.update(b"" if identify is None else identify(folder, contents))
        return digest.digest()

    def counts(self, batch_size: int) -> tuple[int, int]:
        """Return how many images of a batch have labels and how many have none: one of each at least, where there are both.

        Raises: RecipeError: if a batch has no room for both.
        """
        if not len(self.labelled):
            return 0, batch_size
        if batch_size < 2:
            raise RecipeError(
                "a batch of one image has no room for labelled and unlabelled ones; use a batch_size of 2 at least."
            )
        unlabelled = min(max(1, round(batch_size * self.share)), batch_size - 1)
        return batch_size - unlabelled, unlabelled
