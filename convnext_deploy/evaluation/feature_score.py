"""Score a feature extractor: kNN top-1 by its own features, and vectors by which it is compared with another one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.datasets import Data
from convnext_deploy.data.sampling import gallery_indices
from convnext_deploy.evaluation.run_images import Opened
from convnext_deploy.evaluation.score import Score
from convnext_deploy.metrics.neighbours import NEIGHBOURS, Similarity, neighbour_votes, unit

LARGEST_GALLERY = 50_000
"""Of more training images so many are taken, each class in proportion."""
_MOST_COMPARED = 10_000  # images whose features are kept
_PLACES = 4  # of a feature map, of each image

Vectors = NDArray[np.float16]
"""Features of some validation images at some places, `(n, places, D)`, of length 1."""


@dataclass(frozen=True)
class Neighbourhood:
    """What a feature extractor was scored by: the `neighbours` nearest of `gallery` images, by features of `width` numbers.

    `leave_one_out`: the gallery are the other validation images, because there are no training images.
    """

    width: int
    neighbours: int
    gallery: int
    leave_one_out: bool = False

    def __str__(self) -> str:
        of = "the other validation images" if self.leave_one_out else f"{self.gallery:,} training images"
        return f"kNN top-1 is by the {self.neighbours} nearest of {of}, whose features this very artifact gives"


@dataclass(frozen=True)
class FeatureQuality:
    """What a feature extractor gives: `output` of the `shape`, and what it was scored by.

    `similarity`: to the features of the row's baseline, None for a baseline itself.
    """

    output: str
    shape: str
    measured_by: Neighbourhood
    similarity: Similarity | None = None

    @property
    def gives(self) -> str:
        """What it gives, in words."""
        return f"gives '{self.output}' {self.shape}"

    def describe(self, baseline: str | None) -> tuple[str, ...]:
        """Return what is to be known of its score, and how like its features are to those of the `baseline`, a sentence each."""
        own = f"a feature extractor, which {self.gives}; {self.measured_by}"
        return (own,) if self.similarity is None else (own, f"{self.similarity.describe()} of {baseline}")


@dataclass(frozen=True)
class _Features:
    """What is kept of the features of a batch: a vector of each image, `(n, D)`, the labels, and what is compared, if anything."""

    pooled: NDArray[np.float32]
    labels: NDArray[np.int64]
    compared: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Keeping:
    """`compared`: for each image whether it is compared, `(N,)`, and `places` of a feature map, `(N, places)`; None: none is."""

    batch_size: int
    compared: NDArray[np.bool_] | None = None
    places: NDArray[np.float64] | None = None
    gives: str = "features"

    def convert(self, given: NDArray[Any]) -> NDArray[Any]:
        """Return features `(n, D)` or `(n, D, H, W)` as they are."""
        return given

    def keep(self, found: NDArray[Any], labels: NDArray[Any], number: int) -> _Features:
        """Return what is kept of a batch."""
        compared = None
        if self.compared is not None and self.places is not None:
            start = number * self.batch_size
            rows = np.flatnonzero(self.compared[start : start + len(labels)])
            compared = _at_places(found[rows], self.places[start + rows])
        return _Features(_pooled(found), labels, compared)


def score_features(opened: Opened, data: Data, name: str) -> tuple[Score, Neighbourhood, Vectors]:
    """Give an opened feature extractor all validation images, and the training images to compare these with.

    Returns: its score; by what that was measured; and the features of some validation images, always the same, to compare
        with those of another artifact.

    Raises:
        ArtifactError: if a feature is not finite.
        TooLittleMemoryError: if it is too small for a single image.
    """
    total = len(data.validation)
    places = np.random.default_rng(0).uniform(size=(total, _PLACES))  # of images, whatever the batches
    kept = np.zeros(total, np.bool_)
    kept[np.linspace(0, total - 1, min(total, _MOST_COMPARED)).round().astype(np.int64)] = True
    keeping = _Keeping(opened.batch_size, kept, places)
    found = list(opened.run(data.validation, range(total), keeping, f"{name}: validate"))
    queries, truth = _join(found)
    vectors = np.concatenate([part.compared for part in found if part.compared is not None])
    compared: Vectors = unit(vectors).astype(np.float16)
    width = queries.shape[1]
    chosen = gallery_indices(data.train, data.validation, LARGEST_GALLERY, data.contents)
    if chosen:
        doing = f"{name}: gallery of training images"
        gallery, classes = _join(list(opened.run(data.train, chosen, _Keeping(opened.batch_size), doing)))
        own = None
    else:
        gallery, classes, own = queries, truth, np.arange(total)
    votes = neighbour_votes(queries, gallery, classes, len(data.class_names), own=own)
    others = len(gallery) - (own is not None)
    return count_votes(votes, truth), Neighbourhood(width, min(NEIGHBOURS, others), others, own is not None), compared


def _join(found: Sequence[_Features]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features `(N, D)` and labels `(N,)` of all batches."""
    return np.concatenate([part.pooled for part in found]), np.concatenate([part.labels for part in found])


def count_votes(votes: NDArray[np.float64], labels: NDArray[np.int64]) -> Score:
    """Return the score of votes `(N, classes)`; of equal votes the lower class wins, and what has none is no guess."""
    order = np.argsort(-votes, axis=1, kind="stable")[:, :5]
    named = np.take_along_axis(votes, order, axis=1) > 0
    best = order[:, 0]
    return Score(
        int((best == labels).sum()),
        int(((order == labels[:, None]) & named).any(axis=1).sum()),
        tuple(best.tolist()),
        tuple(labels.tolist()),
        metric="kNN top-1",
    )


def _pooled(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features if features.ndim == 2 else features.mean(axis=(2, 3))


def _at_places(features: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return features `(n, D)` as `(n, 1, D)`, and of a map `(n, D, H, W)` those at places, `(n, places)` in [0, 1)."""
    if features.ndim == 2:
        return features[:, None]
    flat = features.reshape(*features.shape[:2], -1)
    chosen = (places * flat.shape[2]).astype(np.int64)
    return np.take_along_axis(flat, chosen[:, None], axis=2).transpose(0, 2, 1)
