"""What there is in a data set, in a few figures: how many images of how many classes, and how large they are."""

import statistics
from collections import Counter
from dataclasses import dataclass

import numpy as np

from convnext_deploy.data.datasets import Data

_LOOKED_AT = 64  # images, spread over all, whose size is read


@dataclass(frozen=True)
class Survey:
    """Figures of a data set. `images` are those for training, `validation` those that judge.

    Of `looked_at` images the shorter sides, in pixels: `median_side`, from `least_side` to `largest_side`. `rarest`: the class with
    the fewest training images, and how many; None where an image may have several classes.
    """

    name: str
    images: int
    validation: int
    classes: int
    looked_at: int
    median_side: int
    least_side: int
    largest_side: int
    rarest: tuple[str, int] | None

    def describe(self) -> str:
        """Say it in a sentence."""
        sides = f"{self.least_side} to {self.largest_side} pixels, median {self.median_side}"
        if self.least_side == self.largest_side:
            sides = f"{self.median_side} pixels"
        rarest = "" if self.rarest is None else f"; the rarest class, {self.rarest[0]}, has {self.rarest[1]:,}"
        return (
            f"{self.name}: {self.images:,} training images of {self.classes} classes and {self.validation:,} for validation, "
            f"shorter side {sides}{rarest}"
        )


def survey(data: Data) -> Survey:
    """Look at a data set. Raises: DataError: if an image that is looked at cannot be read."""
    count = len(data.train)
    places = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int)).tolist()
    sides = sorted(min(data.train.load(place).size) for place in places)
    labels = np.asarray(data.train.labels)
    rarest = None
    if labels.ndim == 1:
        counts = Counter(labels.tolist())
        number = min(range(len(data.class_names)), key=lambda each: counts[each])
        rarest = (data.class_names[number], counts[number])
    return Survey(
        data.name,
        count,
        len(data.validation),
        len(data.class_names),
        len(places),
        round(statistics.median(sides)),
        sides[0],
        sides[-1],
        rarest,
    )
