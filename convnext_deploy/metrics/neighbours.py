"""Classify features by their nearest neighbours, and compare features: numbers in, numbers out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 20
"""k, as DINO reports it for ImageNet."""
TEMPERATURE = 0.07
_QUERIES_AT_ONCE = 512
_Z95 = 1.959963984540054

Features = NDArray[np.float32] | NDArray[np.float16]


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity of the features of two networks for the same images, in [-1, 1].

    `mean` over `images`, of each over its `places` (1: the pooled features), with the 95 % `interval` of that mean (normal
    approximation); `lowest` is that of the image that is least alike.
    """

    mean: float
    interval: tuple[float, float]
    lowest: float
    images: int
    places: int = 1

    def describe(self) -> str:
        """Return it in words, as the beginning of a sentence."""
        low, high = self.interval
        places = f", {self.places} places of each" if self.places > 1 else ""
        return (
            f"cosine similarity {self.mean:.6f} [95 %: {low:.6f} to {high:.6f}], {self.lowest:.6f} of the image least alike "
            f"({self.images:,} images{places}), to the features"
        )


def unit(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return features `(…, D)` divided by their lengths; what has none stays 0."""
    wide = features.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    scaled: NDArray[np.float32] = (wide / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
    return scaled


def neighbour_votes(
    queries: NDArray[np.float32],
    gallery: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    *,
    own: NDArray[np.int64] | None = None,
    neighbours: int = NEIGHBOURS,
) -> NDArray[np.float64]:
    """Return the votes for each class, `(N, classes)` with rows that sum to 1.

    The `neighbours` gallery images of the largest cosine similarity s vote for their classes, each with the weight exp(s / 0.07).

    Args:
        queries: features `(N, D)`, of any length.
        gallery: features `(M, D)`; of fewer than `neighbours` all vote.
        labels: classes of the gallery, `(M,)`.
        classes: how many there are.
        own: the place of each query in the gallery, `(N,)`, -1 where it is not in there: none votes for itself; None: none is.
        neighbours: k, >= 1.

    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4; with k = 20 and this temperature Caron et al. 2021 (DINO),
        arXiv 2104.14294.
    """
    found = np.zeros((len(queries), classes))
    others = unit(gallery).T
    count = min(neighbours, len(gallery) - (own is not None))
    for start in range(0, len(queries) if count > 0 else 0, _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        similar = unit(queries[rows]) @ others
        if own is not None:
            inside = np.flatnonzero(own[rows] >= 0)
            similar[inside, own[rows][inside]] = -np.inf
        nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(similar, nearest, axis=1).astype(np.float64)
        weights = np.exp((near - near.max(axis=1, keepdims=True)) / TEMPERATURE)
        votes = np.zeros((len(near), classes))
        np.add.at(votes, (np.arange(len(near))[:, None], labels[nearest]), weights)
        found[rows] = votes / votes.sum(axis=1, keepdims=True)
    return found


def compare_features(features: Features, before: Features) -> Similarity:
    """Compare features with those of another network for the same images, both `(N, places, D)` of one length."""
    one, other = features.astype(np.float64), before.astype(np.float64)
    lengths = np.sqrt((one * one).sum(axis=-1) * (other * other).sum(axis=-1))
    cosines = ((one * other).sum(axis=-1) / np.maximum(lengths, np.finfo(np.float64).tiny)).mean(axis=1)
    cosines = np.clip(cosines, -1.0, 1.0)
    mean = float(cosines.mean())
    half = _Z95 * float(cosines.std(ddof=1)) / len(cosines) ** 0.5 if len(cosines) > 1 else 2.0
    interval = (max(-1.0, mean - half), min(1.0, mean + half))
    return Similarity(mean, interval, float(cosines.min()), len(cosines), features.shape[1])
