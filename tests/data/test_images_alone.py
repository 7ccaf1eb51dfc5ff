"""Images that are sent to another process: the same images, and nothing of the others."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.data.datasets import Data, FolderImages, ImageSet, open_data
from convnext_deploy.data.sampling import alone
from tests.shards import numbered


@pytest.mark.parametrize("kind", ["folder", "shards", "arrays"])
def test_images_alone_are_the_same_images(kind: str, small_data: Data, tmp_path: Path) -> None:
    images: ImageSet = open_data("digits").train if kind == "arrays" else small_data.train
    if kind == "shards":
        for part in (0, 1):
            numbered(tmp_path / f"train-{part}.tar", range(12 * part, 12 * part + 12))
        images = open_data(str(tmp_path)).train
    chosen = [5, 0, 3]
    sent: ImageSet = pickle.loads(pickle.dumps(alone(images, chosen)))
    assert len(sent) == 3
    for place, index in enumerate(chosen):
        assert np.array_equal(np.asarray(sent.load(place)), np.asarray(images.load(index)))
        assert sent.labels[place] == images.labels[index]
        assert sent.size_hint(place) == images.size_hint(index)
    if isinstance(images, FolderImages):
        assert isinstance(sent, FolderImages)
        assert list(sent.paths) == [images.paths[index] for index in chosen]
    one, all_of_them = (len(pickle.dumps(alone(images, kept))) for kept in ([0], range(len(images))))
    assert len(pickle.dumps(alone(images, [1]))) <= one + 64
    assert one < all_of_them / 2


def test_no_images_alone_are_none(small_data: Data) -> None:
    assert len(pickle.loads(pickle.dumps(alone(small_data.train, [])))) == 0
