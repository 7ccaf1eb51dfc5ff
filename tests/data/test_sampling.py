"""Which training images calibrate and judge: the class mix, and what is left to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.data.datasets import ArrayImages, Data, FolderImages, open_data
from convnext_deploy.data.sampling import divide_training_images, sample_in_proportion, without
from tests.conftest import write_image_folder


def images_of(counts: list[int], seed: int = 0) -> ArrayImages:
    labels = np.repeat(np.arange(len(counts)), counts)
    return ArrayImages(np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8), labels)


@pytest.mark.parametrize("count", [10, 50, 99])
def test_each_class_has_its_part_rounded_up_or_down(count: int) -> None:
    labels = np.repeat(np.arange(4), [70, 20, 9, 1])
    for seed in range(5):
        chosen = sample_in_proportion(labels, np.arange(100), count, seed)
        assert len(set(chosen)) == count
        found, expected = np.bincount(labels[chosen], minlength=4), np.array([70, 20, 9, 1]) * count / 100
        assert (np.abs(found - expected) < 1).all()
    assert sample_in_proportion(labels, np.arange(100), count, 1) != sample_in_proportion(
        labels, np.arange(100), count, 2
    )


def test_every_image_is_as_likely_as_any_other() -> None:
    labels = np.repeat(np.arange(3), [50, 30, 20])
    times = np.zeros(100)
    for seed in range(600):
        times[sample_in_proportion(labels, np.arange(100), 10, seed)] += 1
    assert times.sum() == 6000
    assert (np.abs(times - 60) < 5 * np.sqrt(60)).all()


@pytest.mark.parametrize(
    ("total", "sizes"), [(520, (173, 347)), (1, (1, 0)), (2, (1, 1)), (4608, (512, 4096)), (6000, (512, 4096))]
)
def test_few_images_are_divided_in_proportion(total: int, sizes: tuple[int, int]) -> None:
    """Of 520 images 512 calibrated once, and 8 judged."""
    calibrating, judging = divide_training_images(images_of([total]), images_of([3], 1), (512, 4096), 0)
    assert (len(calibrating), len(judging)) == sizes
    assert set(calibrating).isdisjoint(judging)


def test_what_judges_is_left_out_of_images_of_every_kind(small_data: Data, tmp_path: Path) -> None:
    folder = open_data(str(write_image_folder(tmp_path / "images", train=4, validation=3)))
    for data in (small_data, folder):
        rest = without(data, [0, 5, 7])
        assert type(rest.train) is type(data.train)
        assert len(rest.train) == len(data.train) - 3
        kept = [index for index in range(len(data.train)) if index not in (0, 5, 7)]
        assert rest.train.labels.tolist() == data.train.labels[kept].tolist()
        contents = [rest.train.content(index) for index in range(len(kept))]
        assert contents == [data.train.content(index) for index in kept]
        assert (rest.validation, rest.class_names) == (data.validation, data.class_names)
        assert rest.fingerprint != data.fingerprint  # or what was decoded of the others would be taken for it
    assert isinstance(folder.train, FolderImages)
    assert without(folder, []).fingerprint == folder.fingerprint
