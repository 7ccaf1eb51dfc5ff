"""The built-in data: the test set of UCI's *Optical Recognition of Handwritten Digits* (Alpaydin and Kaynak, 1998).

`digits.npz` is licensed under CC BY 4.0, see `digits_license.md`.
"""

import importlib.resources
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_VALIDATION = 540
_SPLIT_SEED = 20220110
_SIDE = 32


@dataclass(frozen=True)
class Digits:
    """Images `(N, 32, 32, 3)` uint8 with their labels `(N,)`, for training and for validation."""

    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    validation: NDArray[np.uint8]
    validation_labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_digits() -> Digits:
    """Return the 1797 digits (8×8, 17 grey levels) as 32×32 RGB images, 540 of them for validation."""
    with (
        importlib.resources.files("convnext_deploy.data").joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        levels, numbers = arrays["images"], arrays["labels"]
    grey = (levels * (255.0 / 16.0)).round().astype(np.uint8)
    size = (_SIDE, _SIDE)
    images = np.stack(
        [np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BICUBIC).convert("RGB")) for g in grey]
    )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    held_out, rest = order[:_VALIDATION], order[_VALIDATION:]
    labels = numbers.astype(np.int64)
    names = tuple(str(number) for number in range(10))
    return Digits(images[rest], labels[rest], images[held_out], labels[held_out], names)
