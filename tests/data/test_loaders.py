"""Batches and calibration images: deterministic, complete, independent of the number of workers."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.spec import Preprocess, default_preprocess
from convnext_deploy.data.datasets import ArrayImages, Data, FolderImages, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.sampling import calibration_indices
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder

PLAIN = Preprocess(32, 1.0, "bicubic", (0.0,) * 3, (1 / 255,) * 3)  # normalized values are pixel values


def noise_images(count: int, side: int) -> ArrayImages:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return ArrayImages(arrays, rng.integers(0, 5, count))


def numbered_images(count: int, side: int = 8) -> ArrayImages:
    """Image `i` is of the one grey level `i`, and its label is `i % 7`."""
    numbers = np.arange(count, dtype=np.uint8)
    return ArrayImages(np.broadcast_to(numbers[:, None, None, None], (count, side, side, 3)), numbers.astype(int) % 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_hold_each_image_once_and_in_order(small_data: Data, workers: int) -> None:
    preprocess = default_preprocess(24, 0.8)
    assert isinstance(small_data.validation, FolderImages)
    fresh = dataclasses.replace(small_data.validation)  # of which no other test has kept pixels
    batches = EvaluationBatches(fresh, preprocess, 5, workers)
    parts = list(batches)
    assert [len(labels) for _, labels in parts] == [5, 5, 5, 3]
    assert len(batches) == 4
    images, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    assert labels.tolist() == small_data.validation.labels.tolist()
    expected = [evaluation_transform(small_data.validation.load(i), preprocess) for i in range(18)]
    assert torch.equal(images, normalize(torch.from_numpy(np.stack(expected)), preprocess))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_follow_indices(workers: int) -> None:
    batches = EvaluationBatches(numbered_images(20, 32), PLAIN, 2, workers, [7, 3, 19, 3, 0])
    parts = list(batches)
    assert len(batches) == len(parts) == 3
    assert torch.cat([images[:, 0, 0, 0] for images, _ in parts]).round().int().tolist() == [7, 3, 19, 3, 0]
    assert torch.cat([labels for _, labels in parts]).tolist() == [0, 3, 5, 3, 0]


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Data, Path]:
    """A data folder in each split of which one image has become unreadable since it was opened."""
    folder = write_image_folder(tmp_path / "images", train=4, validation=4)
    data = open_data(str(folder))
    for split in ("train", "val"):
        (folder / split / "dog" / "2.png").write_bytes(b"broken")
    return data, folder


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_name_the_file_when_an_image_is_unreadable(damaged: tuple[Data, Path], workers: int) -> None:
    data, folder = damaged
    batches = EvaluationBatches(data.validation, default_preprocess(32), 4, workers)
    with pytest.raises(DataError, match=re.escape(str(folder / "val" / "dog" / "2.png"))) as caught:
        list(batches)
    assert "\n" not in str(caught.value)


def test_calibration_indices_are_balanced_and_seeded(small_data: Data) -> None:
    train, validation = small_data.train, small_data.validation
    chosen = calibration_indices(train, validation, 13, seed=1)
    assert len(set(chosen)) == 13
    assert sorted(np.bincount(train.labels[chosen]).tolist()) == [4, 4, 5]
    assert calibration_indices(train, validation, 13, seed=1) == chosen
    assert calibration_indices(train, validation, 13, seed=2) != chosen


def test_calibration_indices_take_other_classes_when_one_is_small() -> None:
    labels = np.array([0] * 2 + [1] * 10 + [2] * 10)
    arrays = np.random.default_rng(0).integers(0, 256, (22, 4, 4, 3), dtype=np.uint8)
    train, validation = ArrayImages(arrays, labels), noise_images(3, 4)
    chosen = calibration_indices(train, ArrayImages(255 - validation.arrays, validation.labels), 12, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [2, 5, 5]


def test_calibration_indices_give_every_image_when_more_are_asked_for(small_data: Data) -> None:
    assert calibration_indices(small_data.train, small_data.validation, 1000, seed=0) == list(range(36))


def test_calibration_indices_leave_out_validation_images_when_copied_under_other_names(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images", train=4, validation=3)
    for index in range(3):
        shutil.copy(folder / "val" / "cat" / f"{index}.png", folder / "train" / "cat" / f"copy-{index}.png")
    shutil.copy(folder / "val" / "owl" / "0.png", folder / "train" / "dog" / "other-class.png")
    data = open_data(str(folder))
    assert isinstance(data.train, FolderImages)
    assert len(data.train) == 12 + 4
    for seed in range(5):
        chosen = calibration_indices(data.train, data.validation, 1000, seed)
        names = {f"{data.train.paths[i].parent.name}/{data.train.paths[i].name}" for i in chosen}
        assert names == {f"{label}/{index}.png" for label in ("cat", "dog", "owl") for index in range(4)}
        nine = calibration_indices(data.train, data.validation, 9, seed)
        assert np.bincount(data.train.labels[nine]).tolist() == [3, 3, 3]


def test_calibration_indices_leave_out_equal_arrays_but_not_equal_sums() -> None:
    arrays = np.zeros((4, 2, 2, 3), np.uint8)
    arrays[0, 0, 0, 0] = arrays[1, 1, 1, 2] = 9
    arrays[2], arrays[3] = 1, 2
    train = ArrayImages(arrays, np.array([0, 0, 1, 1]))
    validation = ArrayImages(arrays[[0, 3]], np.array([0, 1]))
    assert calibration_indices(train, validation, 4, seed=0) == [1, 2]


def test_calibration_indices_are_empty_when_train_is_the_validation_set() -> None:
    images = noise_images(6, 4)
    assert calibration_indices(images, images, 4, seed=0) == []
