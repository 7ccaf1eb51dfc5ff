"""Where images come from: an image folder, or the built-in handwritten digits."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import DataError

BUILT_IN = "digits"
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
VALIDATION_FOLDERS = ("val", "validation", "test")
_DIGITS_VALIDATION = 540
_DIGITS_SPLIT_SEED = 20220110
_DIGITS_SIZE = 32


class ImageSet(Protocol):
    """Labelled images."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, `(N,)`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def load(self, index: int) -> Image.Image:
        """Decode an image. Raises: DataError: naming the file, if it cannot be read."""

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
        """See `ImageSet.load`."""
        try:
            with Image.open(self.paths[index]) as image:
                image.load()
                return image
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            raise DataError(
                f"{self.paths[index]} cannot be read as an image ({reason}); repair or remove it."
            ) from None

    def content(self, index: int) -> bytes:
        """See `ImageSet.content`."""
        return self.paths[index].read_bytes()

    def size_hint(self, index: int) -> int:
        """Size of the file in bytes."""
        return self.paths[index].stat().st_size


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, `(N, H, W, C)` uint8."""

    arrays: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrays)

    def load(self, index: int) -> Image.Image:
        """See `ImageSet.load`."""
        return Image.fromarray(self.arrays[index])

    def content(self, index: int) -> bytes:
        """See `ImageSet.content`."""
        content: bytes = self.arrays[index].tobytes()
        return content

    def size_hint(self, index: int) -> int:
        """Sum of all pixel values."""
        return int(self.arrays[index].sum())


@dataclass(frozen=True)
class Data:
    """A training and a validation set over the same classes. `name` is what the user gave."""

    name: str
    train: ImageSet
    validation: ImageSet
    class_names: tuple[str, ...]
    ignored_files: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes when an image is added, removed, renamed, re-labelled or rewritten."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for images in (self.train, self.validation):
            digest.update(images.labels.tobytes())
            if isinstance(images, ArrayImages):
                digest.update(images.arrays.tobytes())
            elif isinstance(images, FolderImages):
                for path in images.paths:
                    status = path.stat()
                    # names are bytes to the system, and not always valid text
                    digest.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def open_data(name: str) -> Data:
    """Open `digits` or an image folder with `train/` and one of `val/`, `validation/`, `test/`, one folder per class.

    Raises: DataError: if the folder or a split is missing or empty, or a class is present in only one split.
    """
    if name == BUILT_IN and not Path(name).is_dir():
        return _digits()
    root = Path(name)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"the data folder {root} {found}; expected a folder with train/ and val/, or '{BUILT_IN}'.")
    validation = next((root / folder for folder in VALIDATION_FOLDERS if (root / folder).is_dir()), None)
    if not (root / "train").is_dir() or validation is None:
        missing = "train/" if not (root / "train").is_dir() else "val/ (or validation/, test/)"
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise DataError(
            f"the data folder {root} has no {missing}; found {inside}. Expected train/CLASS/*.jpg and val/CLASS/*.jpg."
        )
    found_train, ignored_train = _scan(root / "train")
    found_validation, ignored_validation = _scan(validation)
    for here, there, where in (
        (found_train, found_validation, validation),
        (found_validation, found_train, root / "train"),
    ):
        lonely = sorted(set(here) - set(there))
        if lonely:
            raise DataError(f"class '{lonely[0]}' has no images in {where}; every class needs images in both splits.")
    names = tuple(sorted(found_train))
    if len(names) < 2:
        raise DataError(f"{root / 'train'} has only the class '{names[0]}'; at least 2 are needed.")
    return Data(
        str(root),
        _folder(found_train, names),
        _folder(found_validation, names),
        names,
        ignored_train + ignored_validation,
    )


def _scan(split: Path) -> tuple[dict[str, list[Path]], int]:
    """Return the images of each class folder in sorted order, and how many files are no images."""
    found: dict[str, list[Path]] = {}
    ignored = sum(path.is_file() for path in split.iterdir())  # images outside of class folders have no label
    for folder in sorted(p for p in split.iterdir() if p.is_dir() and not p.name.startswith(".")):
        paths: list[Path] = []
        for base, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]  # such as .thumbnails
            paths += [Path(base) / file for file in files]
        images = [p for p in paths if p.suffix.lower() in IMAGE_EXTENSIONS and not p.name.startswith(".")]
        ignored += len(paths) - len(images)
        if images:
            found[folder.name] = sorted(images)
    if not found:
        raise DataError(
            f"{split} has no images; expected one folder per class with {', '.join(IMAGE_EXTENSIONS[:3])} files."
        )
    return found, ignored


def _folder(found: dict[str, list[Path]], names: tuple[str, ...]) -> FolderImages:
    labels = np.concatenate([np.full(len(found[name]), label, np.int64) for label, name in enumerate(names)])
    return FolderImages(tuple(path for name in names for path in found[name]), labels)


def _digits() -> Data:
    """Scikit-learn's 1797 digits (8×8, 16 grey levels) as 32×32 RGB images, 540 of them held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = (bunch.images * (255.0 / 16.0)).round().astype(np.uint8)
    size = (_DIGITS_SIZE, _DIGITS_SIZE)
    arrays = np.stack(
        [np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BICUBIC).convert("RGB")) for g in grey]
    )
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(arrays))
    held_out, rest = order[:_DIGITS_VALIDATION], order[_DIGITS_VALIDATION:]
    labels = bunch.target.astype(np.int64)
    return Data(
        BUILT_IN,
        ArrayImages(arrays[rest], labels[rest]),
        ArrayImages(arrays[held_out], labels[held_out]),
        tuple(str(name) for name in bunch.target_names),
    )


def check_classes(what: str, artifact: Artifact, data: Data) -> None:
    """Check that an artifact takes images as files hold them, and that it and the data speak of the same classes.

    Raises: DataError: if not.
    """
    if artifact.model.in_channels not in (1, 3):
        raise DataError(f"{what} takes {artifact.model.in_channels} channels; image files have 1 (grey) or 3 (RGB).")
    if artifact.model.num_classes < 1:
        raise DataError(
            f"{what} has no classification head; give it one with 'convnext-deploy train --weights FILE --data DIR'."
        )
    if len(data.class_names) != artifact.model.num_classes:
        raise DataError(f"{what} has {artifact.model.num_classes} classes, {data.name} has {len(data.class_names)}.")
    if artifact.class_names is not None and artifact.class_names != data.class_names:
        pair = next((a, b) for a, b in zip(artifact.class_names, data.class_names, strict=True) if a != b)
        raise DataError(
            f"{what} was trained with class '{pair[0]}' where {data.name} has '{pair[1]}'; use the same classes."
        )
