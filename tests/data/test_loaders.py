"""Batches and calibration images: deterministic, complete, independent of the number of workers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convnext_deploy.data.loaders import EvaluationBatches, TrainingBatches, calibration_indices
from convnext_deploy.data.sources import ArrayImages, Data, FolderImages, ImageSet, open_data
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.errors import DataError
from convnext_deploy.spec import Preprocess, default_preprocess
from tests.conftest import write_image_folder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

PLAIN = Preprocess(32, 1.0, "bicubic", (0.0,) * 3, (1 / 255,) * 3)  # normalized values are pixel values


def noise_images(count: int, side: int) -> ArrayImages:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return ArrayImages(arrays, rng.integers(0, 5, count))


def numbered_images(count: int, side: int = 8) -> ArrayImages:
    """Image `i` is of the one grey level `i`, and its label is `i % 7`."""
    numbers = np.arange(count, dtype=np.uint8)
    return ArrayImages(np.broadcast_to(numbers[:, None, None, None], (count, side, side, 3)), numbers.astype(int) % 7)


def training(images: ImageSet, *, seed: int = 0, workers: int = 0, flip: float = 0.5, size: int = 5) -> TrainingBatches:
    return TrainingBatches(
        images, PLAIN, batch_size=size, crop_scale_min=0.3, flip_probability=flip, seed=seed, workers=workers
    )


def epoch(batches: TrainingBatches, number: int = 0) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a whole epoch."""
    images, labels = zip(*batches.epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


# 40 pixels are decoded once and augmented in batches; 100 pixels are decoded in every epoch.
SIDES = pytest.mark.parametrize("side", [40, 100])


@SIDES
def test_training_batches_depend_on_seed_and_epoch_alone(side: int) -> None:
    images = noise_images(11, side)
    batches = training(images, seed=4)
    first, second = epoch(batches, 2), epoch(batches, 3)
    again = epoch(training(images, seed=4), 2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], epoch(training(images, seed=5), 2)[0])


@SIDES
def test_training_batches_do_not_depend_on_workers(side: int) -> None:
    images = noise_images(11, side)
    alone, shared = epoch(training(images)), epoch(training(images, workers=2))
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])


def test_training_batches_do_not_depend_on_workers_when_sizes_differ(tmp_path: Path) -> None:
    paths = []
    for index, side in enumerate((20, 33, 20, 51)):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(noise_images(1, side).arrays[0]).save(paths[-1])
    images = FolderImages(tuple(paths), np.arange(4))
    alone, shared = epoch(training(images, size=2)), epoch(training(images, size=2, workers=2))
    assert alone[0].shape == (4, 3, 32, 32)
    assert torch.equal(alone[0], shared[0])


@SIDES
def test_training_batches_hold_each_image_at_most_once_with_its_label(side: int) -> None:
    batches = training(numbered_images(23, side), size=5)
    assert len(batches) == 4
    orders = []
    for number in range(3):
        images, labels = epoch(batches, number)
        numbers = images.mean(dim=(1, 2, 3)).round().long()
        assert images.flatten(1).std(dim=1).max() < 1e-3
        assert len(set(numbers.tolist())) == 20
        assert torch.equal(numbers % 7, labels)
        orders.append(tuple(numbers.tolist()))
    assert len(set(orders)) == 3


@SIDES
def test_training_batches_mirror_every_image_when_flip_probability_is_one(side: int) -> None:
    images = noise_images(6, side)
    never, always = epoch(training(images, flip=0.0))[0], epoch(training(images, flip=1.0))[0]
    torch.testing.assert_close(always, never.flip(3), rtol=0, atol=0.05)
    assert not torch.allclose(always, never, atol=20)


@SIDES
def test_training_batches_crop_differently_in_every_image_and_epoch(side: int) -> None:
    one = noise_images(1, side).arrays
    same = ArrayImages(np.repeat(one, 8, axis=0), np.zeros(8, np.int64))
    batches = training(same, size=8)
    views = torch.cat([epoch(batches, 0)[0], epoch(batches, 1)[0]])
    assert len({view.numpy().tobytes() for view in views}) == 16


@SIDES
def test_training_batches_are_normalized_with_their_preprocess(side: int) -> None:
    grey = ArrayImages(np.full((4, side, side, 3), 128, np.uint8), np.zeros(4, np.int64))
    batches = TrainingBatches(
        grey, default_preprocess(24), batch_size=4, crop_scale_min=0.5, flip_probability=0.5, seed=0
    )
    images, _ = epoch(batches)
    assert images.shape == (4, 3, 24, 24)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images.amin(dim=(0, 2, 3)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(images.amax(dim=(0, 2, 3)), expected, rtol=0, atol=1e-4)


def test_training_batches_shrink_when_there_are_fewer_images() -> None:
    batches = training(numbered_images(3), size=64)
    assert (batches.batch_size, len(batches)) == (3, 1)
    assert epoch(batches)[0].shape[0] == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_hold_each_image_once_and_in_order(small_data: Data, workers: int) -> None:
    preprocess = default_preprocess(24, 0.8)
    batches = EvaluationBatches(small_data.validation, preprocess, 5, workers)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_leave_the_global_random_state_alone(workers: int) -> None:
    images = noise_images(8, 100)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    list(EvaluationBatches(images, PLAIN, 4, workers))
    epoch(training(images, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Data, Path]:
    """A data folder with one unreadable image in each split, and the common part of their names."""
    folder = write_image_folder(tmp_path / "images", train=4, validation=4)
    for split in ("train", "val"):
        (folder / split / "dog" / "2.png").write_bytes(b"broken")
    return open_data(str(folder)), folder


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_name_the_file_when_an_image_is_unreadable(damaged: tuple[Data, Path], workers: int) -> None:
    data, folder = damaged
    batches = EvaluationBatches(data.validation, default_preprocess(32), 4, workers)
    with pytest.raises(DataError, match=re.escape(str(folder / "val" / "dog" / "2.png"))) as caught:
        list(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_name_the_file_when_an_image_is_unreadable(damaged: tuple[Data, Path], workers: int) -> None:
    data, folder = damaged
    with pytest.raises(DataError, match=re.escape(str(folder / "train" / "dog" / "2.png"))):
        training(data.train, workers=workers)
    Image.new("RGB", (200, 200)).save(folder / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=re.escape(str(folder / "train" / "dog" / "2.png"))) as caught:
        epoch(training(data.train, workers=workers, size=12))
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
