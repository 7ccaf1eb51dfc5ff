"""A teacher that is a file of predictions: the vector of each training image is found by its name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.data.ahead import upload
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.image_sets import ImageSet, TaughtImages
from convnext_deploy.data.label_table import some
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import DataError
from convnext_deploy.training.prediction_files import Content, read_names, read_predictions

_SMALLEST = 1e-30  # a probability of 0 has no logarithm


class PredictionTable:
    """The vectors of a file in the order of the training images.

    Args:
        path: the file.
        data: whose training images are looked up by their names: as written, or by as many of their last folders as it takes.
        content: what the vectors are.
        temperature: at which logits of mixed images are mixed.
        outputs: the column of each class, `(classes,)`; None: they are in order.

    Raises: DataError: if an image has no vector, two have the same, or the data are no folder.
    """

    def __init__(
        self,
        path: Path,
        data: Data,
        content: Content,
        temperature: float = 1.0,
        outputs: NDArray[np.int64] | None = None,
    ) -> None:
        found = read_predictions(path)
        vectors = torch.from_numpy(found.vectors[find_rows(found.names, data, path)])
        if outputs is not None:
            vectors = vectors[:, torch.from_numpy(outputs)]
        if content == "probabilities":
            vectors = vectors.clamp(min=_SMALLEST).log()
        self.vectors, self.temperature, self.is_features = vectors, temperature, content == "features"

    def __call__(self, batch: Batch) -> Tensor:
        """Return the vectors `(N, width)` of a batch on its device, mixed as its images are.

        Logits are mixed as probabilities: the result's softmax at the temperature is the weighted mean.
        """
        assert batch.numbers is not None  # batches of a training set have numbers
        own = self.vectors[batch.numbers]
        if batch.mixed_in is not None and batch.weight < 1.0:
            other = self.vectors[batch.mixed_in]
            if self.is_features:
                own = torch.lerp(other, own, batch.weight)
            else:
                both = [F.log_softmax(each / self.temperature, dim=1) for each in (own, other)]
                weights = torch.tensor([batch.weight, 1.0 - batch.weight]).clamp(min=_SMALLEST).log()
                own = self.temperature * torch.logsumexp(torch.stack(both) + weights[:, None, None], dim=0)
        return upload(own, batch.images.device)


class NamedRows:
    """The rows of a file by the names of images in it.

    A name fits an image whose path ends with it, folder by folder; of several the longest counts. `.` and `..` before the first
    folder are left out: they are about the folder in which the file was written, which nobody knows.

    Args:
        names: of the rows.
        path: of the file, for messages.

    Raises: DataError: if two rows have the same name.
    """

    def __init__(self, names: Sequence[str], path: Path) -> None:
        self.names, self.path = names, path
        self._rows: dict[tuple[str, ...], int] = {}
        for row, name in enumerate(names):
            if self._rows.setdefault(_parts(name), row) != row:
                raise DataError(f"{path} has two vectors for {name!r}; expected one for each image.")
        self._longest = max(map(len, self._rows))

    def find(self, image: Path) -> int:
        """Return the row of an image, -1: there is none."""
        # names may be absolute where the data was given as a relative path; links stay, or names below them would fit no more
        parts = _parts(os.path.abspath(image))  # noqa: PTH100
        ends = (parts[-count:] for count in range(min(self._longest, len(parts)), 0, -1))
        return next((self._rows[end] for end in ends if end in self._rows), -1)

    def find_all(self, images: Sequence[Path], kind: str = "training") -> NDArray[np.int64]:
        """Return the row of each image, `(N,)`. Raises: DataError: if one has none, or two have the same."""
        found = np.array([self.find(image) for image in images], np.int64)
        if missing := [images[place] for place in np.flatnonzero(found < 0).tolist()]:
            raise DataError(
                f"{self.path} has no vector for {len(missing)} of {len(images)} {kind} images, such as {missing[0]}; its names are "
                f"like {self.names[0]!r}."
            )
        if len(np.unique(found)) < len(found):
            raise DataError(
                f"{self.path} has the same name for several {kind} images; name them with their folders, such as "
                f"{'/'.join(_parts(str(images[0]))[-2:])!r}."
            )
        return found


def find_rows(names: Sequence[str], data: Data, path: Path) -> NDArray[np.int64]:
    """Return for each training image the place of its name, `(N,)`. Raises: DataError: see `PredictionTable`."""
    images, unlabelled = _paths_of(data.train, data, path)
    rows = NamedRows(names, path)
    found = rows.find_all(images)
    # of two folders the same name may mean two images: what is said of one that judges is not taken for one without a label
    meant = dict(zip(found[len(images) - unlabelled :].tolist(), images[len(images) - unlabelled :], strict=True))
    for judging in (data.validation, data.test) if meant else ():
        for other in judging.paths if isinstance(judging, FolderImages) else ():
            if (image := meant.get(rows.find(other))) is not None:
                raise DataError(
                    f"{path} has a name, {names[rows.find(other)]!r}, that fits {image} and {other}; name them with more of their "
                    "folders."
                )
    return found


def check_shares(path: Path, data: Data, outputs: NDArray[np.int64]) -> None:
    """Check that a file whose numbers show logits has no probabilities of the data's classes, beside what is no class at all.

    One number more for each image, such as the confidence, and the sum of all is not 1. A file with more classes than the data
    has probabilities too, but those of the data's classes alone are less than 1.

    Args:
        path: the file.
        data: with the classes.
        outputs: the column of each class, `(classes,)`.

    Raises: DataError: if it has.
    """
    found = read_predictions(path)
    if (
        found.told is None
        and found.content == "logits"
        and replace(found, vectors=found.vectors[:, outputs]).are_probable
    ):
        names = found.class_names or ()
        others = [name for place, name in enumerate(names) if place not in outputs]
        raise DataError(
            f"{path} has, for the classes of {data.name}, numbers that are at least 0 and sum to 1 for each image, as "
            f"probabilities do, and columns besides that are no classes of it: {some(others)}; leave these out."
        )


def check_judged(path: Path, data: Data, trained: ImageSet) -> None:
    """Check that a file has a vector for each validation image, by a name that means none of those that are trained on.

    Args:
        path: the file.
        data: with the validation images.
        trained: images that are trained on; they need no vectors here.

    Raises: DataError: if a validation image has none of its own, or the data are no folder.
    """
    rows = NamedRows(read_names(path), path)
    judged = set(rows.find_all(_paths_of(data.validation, data, path)[0], "validation").tolist())
    if any(rows.find(image) in judged for image in _paths_of(trained, data, path)[0]):
        raise DataError(f"the names in {path} do not tell validation images from training images")


def _paths_of(images: ImageSet, data: Data, path: Path) -> tuple[tuple[Path, ...], int]:
    """Return the files of all images, and how many of them, at the end, have no labels."""
    parts = (images.labelled, images.unlabelled) if isinstance(images, TaughtImages) else (images,)
    paths: list[Path] = []
    for part in parts:
        if not isinstance(part, FolderImages):
            raise DataError(
                f"{path} names files, and {data.name} is no folder of images; a file of predictions teaches with a folder."
            )
        paths += part.paths
    return tuple(paths), len(parts[1]) if len(parts) > 1 else 0


def _parts(name: str) -> tuple[str, ...]:
    """Return the folders and the file of a name, whichever system wrote it."""
    text = unicodedata.normalize("NFC", name.replace("\\", "/"))
    parts = [part for part in text.split("/") if part not in ("", ".")]
    first = next((place for place, part in enumerate(parts) if part != ".."), len(parts))
    return tuple(parts[first:])
