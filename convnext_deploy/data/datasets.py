"""Open labelled images for training and validation: an image folder, tar shards, or the built-in handwritten digits."""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.data.class_names import match_names, missing_names
from convnext_deploy.data.decoding import printable, read_image
from convnext_deploy.data.image_folder import read_folder
from convnext_deploy.data.shards import ShardImages, find_shards, read_shards
from convnext_deploy.data.splits import ClassFiles
from convnext_deploy.errors import DataError

BUILT_IN = "digits"
VALIDATION_FRACTION = 0.1  # of each class, where nobody says it
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


@dataclass(frozen=True)
class Split:
    """How validation images were held out of a folder that has none of its own."""

    fraction: float
    seed: int


@dataclass(frozen=True)
class Data:
    """A training and a validation set over the same classes.

    `name` is what the user gave; `ignored_files` are not images by their names; `unreadable` are images that were left out;
    `split` is None when the validation set came with the data. `numbered`: the data itself gives the classes their numbers, as
    shards do and folders do not; `named`: it gives them names, too.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    class_names: tuple[str, ...]
    ignored_files: int = 0
    unreadable: tuple[Path, ...] = ()
    split: Split | None = None
    numbered: bool = False
    named: bool = True

    def in_order(self, names: tuple[str, ...], where: str) -> "Data":
        """Return the same images with the classes numbered as in `names`, of which `where` says whose they are.

        Raises: DataError: if these are not the names of the classes.
        """
        places = match_names(names, self.class_names)
        if places is None:
            first, second = missing_names(names, self.class_names)
            raise DataError(
                f"{where} has {len(names)} classes and {self.name} {len(self.class_names)}"
                + (f"; '{first[0]}' is not in {self.name}" if first else "")
                + (f"; '{second[0]}' is not in {where}" if second else "")
                + ("" if first or second else "; a name stands there twice")
                + ". Name each class once, as its folder is called."
            )
        if places == tuple(range(len(names))):
            return self
        numbers = np.array(places, np.int64)
        ordered = tuple(self.class_names[places.index(number)] for number in range(len(names)))
        train, validation = (_renumber(images, numbers) for images in (self.train, self.validation))
        return replace(self, train=train, validation=validation, class_names=ordered)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the data was read, a line each."""
        notes = []
        name = printable(self.name)
        if self.ignored_files:
            notes.append(f"{self.ignored_files} files in {name} are not images and were left out")
        if self.unreadable:
            images = "image that cannot be read was" if len(self.unreadable) == 1 else "images that cannot be read were"
            notes.append(f"{len(self.unreadable)} {images} left out:")
            notes += [f"  {printable(path)}" for path in self.unreadable]
        if self.split is not None:
            count, total = len(self.validation), len(self.train) + len(self.validation)
            what = "shards" if isinstance(self.validation, ShardImages) else "folder"
            notes.append(
                f"{name} has no validation {what}: {count} of {total} images, {100 * self.split.fraction:.3g}% of each "
                f"class, were held out of training (seed {self.split.seed})"
            )
        return tuple(notes)

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
            elif isinstance(images, ShardImages):
                digest.update(images.fingerprint)
        return digest.hexdigest()


def open_data(
    name: str,
    *,
    validation_fraction: float = VALIDATION_FRACTION,
    split_seed: int = 0,
    skip_unreadable: bool = False,
    cache_dir: Path | None = None,
) -> Data:
    """Open `digits`, an image folder or a folder of tar shards, and check that every image can be opened.

    Args:
        name: `digits`, or a folder with `train/` and one of `val/`, `validation/`, `test/`, each with one folder per class;
            or with `train/` alone, or with the class folders alone, and then validation images are held out; or a folder
            with `train-*.tar` and one of `val-*.tar`, `validation-*.tar`, `test-*.tar`, or with the former alone, or with shards
            of any other names, in the format of WebDataset.
        validation_fraction: share of each class to hold out where there are no validation images, between 0 and 1.
        split_seed: another seed holds out other images. Not the seed of training: every verb must see the same split, or
            a network is scored on images that it was trained on.
        skip_unreadable: leave out images that cannot be opened, and list them in `Data.unreadable`. Damage that shows only
            when all pixels are decoded raises from `ImageSet.load` in any case.
        cache_dir: where to keep what was found in the headers of shards, so that they are not read again; None: nowhere.

    Raises: DataError: if the folder, a split or a class is missing or empty, a class is present in only one split or too
        small to hold out an image of it, or an image cannot be opened.
    """
    if name == BUILT_IN and not Path(name).is_dir():
        return _digits()
    root = Path(name)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"the data folder {printable(root)} {found}; expected a folder with train/ and val/, or '{BUILT_IN}'."
        )
    split = Split(validation_fraction, split_seed)
    if shards := find_shards(root):
        inside = read_shards(root, shards, validation_fraction, split_seed, skip_unreadable, cache_dir)
        held_out = split if inside.held_out else None
        return Data(
            str(root),
            inside.train,
            inside.validation,
            inside.class_names,
            unreadable=inside.unreadable,
            split=held_out,
            numbered=True,
            named=inside.named,
        )
    contents = read_folder(root, validation_fraction, split_seed, skip_unreadable)
    names = tuple(sorted(contents.train))
    return Data(
        str(root),
        _folder(contents.train, names),
        _folder(contents.validation, names),
        names,
        contents.ignored,
        contents.unreadable,
        split if contents.held_out else None,
    )


def _renumber(images: ImageSet, numbers: NDArray[np.int64]) -> ImageSet:
    """Return images whose labels are `numbers[label]`."""
    if isinstance(images, ShardImages):
        return replace(images, numbers=numbers if images.numbers is None else numbers[images.numbers])
    if isinstance(images, FolderImages | ArrayImages):
        return replace(images, labels=numbers[images.labels])
    raise TypeError(f"{type(images).__name__} cannot be numbered anew")


def _folder(found: ClassFiles, names: tuple[str, ...]) -> FolderImages:
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
        numbered=True,
    )
