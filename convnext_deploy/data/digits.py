"""The built-in data: scikit-learn's handwritten digits."""

import warnings
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
    """Return scikit-learn's 1797 digits (8×8, 16 grey levels) as 32×32 RGB images, 540 of them for validation."""
    with warnings.catch_warnings():
        # joblib, which is not used here, wants semaphores in /dev/shm, and warns where that is full
        warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")
        from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = (bunch.images * (255.0 / 16.0)).round().astype(np.uint8)
    size = (_SIDE, _SIDE)
    arrays = np.stack(
        [np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BICUBIC).convert("RGB")) for g in grey]
    )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(arrays))
    held_out, rest = order[:_VALIDATION], order[_VALIDATION:]
    labels = bunch.target.astype(np.int64)
    names = tuple(str(name) for name in bunch.target_names)
    return Digits(arrays[rest], labels[rest], arrays[held_out], labels[held_out], names)
