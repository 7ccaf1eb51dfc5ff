"""Small images as evaluation takes them: decoded in the first pass over them, and kept for those that follow in a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import Preprocess

LARGEST_SIDE = 96  # pixels; larger images take too much memory, and are decoded again in every pass and epoch
MOST_BYTES = 256 << 20  # of one set


@dataclass(frozen=True)
class KeptRows:
    """Images of one set through one transform, `(N, H, W, C)` uint8, of which those that are `known`, `(N,)` bool, are there."""

    pixels: NDArray[np.uint8]
    known: NDArray[np.bool_]

    def have(self, chunk: NDArray[np.int64]) -> bool:
        """Whether all images with these numbers are there."""
        return bool(self.known[chunk].all())

    def put(self, chunk: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Keep the images with these numbers."""
        self.pixels[chunk] = pixels
        self.known[chunk] = True


@dataclass(frozen=True)
class KeptPixels:
    """What is kept of one set in this process, by the transform; other processes get nothing of it."""

    _by_transform: dict[str, KeptRows] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptPixels, ()

    def rows(self, count: int, preprocess: Preprocess) -> KeptRows | None:
        """Return what is kept of a set of so many images through a transform; None where it would take too much memory."""
        shape = (count, *preprocess.sides, len(preprocess.mean))
        if max(preprocess.sides) > LARGEST_SIDE or math.prod(shape) > MOST_BYTES:
            return None
        settings = preprocess.settings() | {"mean": len(preprocess.mean), "std": None}  # pixels are not normalized
        key = repr(sorted(settings.items()))
        if key not in self._by_transform:
            if math.prod(shape) + sum(rows.pixels.nbytes for rows in self._by_transform.values()) > MOST_BYTES:
                self._by_transform.clear()
            # the system gives memory to those rows alone that are written
            self._by_transform[key] = KeptRows(np.empty(shape, np.uint8), np.zeros(count, np.bool_))
        return self._by_transform[key]
