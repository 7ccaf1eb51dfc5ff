"""Training batches: functions of seed, epoch and batch alone, with every training transform."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.datasets import ArrayImages, FolderImages, ImageSet, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder
from tests.data.test_loaders import PLAIN, noise_images, numbered_images


def training(
    images: ImageSet, *, seed: int = 0, workers: int = 0, flip: float = 0.5, size: int = 5, **options: Any
) -> TrainingBatches:
    augmentation = Augmentation(**{"crop_scale_min": 0.3, "flip_probability": flip, **options})
    return TrainingBatches(images, PLAIN, BatchPlan(size, 50, augmentation, seed), workers=workers)


def epoch(batches: TrainingBatches, number: int = 0) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a whole epoch."""
    images, labels = zip(*((batch.images, batch.labels) for batch in batches.epoch(number)), strict=True)
    return torch.cat(images), torch.cat(labels)


# 40 pixels are decoded once and augmented in batches; 100 pixels are decoded in every epoch.
SIDES = pytest.mark.parametrize("side", [40, 100])
EVERYTHING: dict[str, Any] = {
    "color_jitter": 0.4,
    "augmentation_policy": "randaugment",
    "random_erasing_probability": 0.5,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
}


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
    alone, shared = epoch(training(images, **EVERYTHING)), epoch(training(images, workers=2, **EVERYTHING))
    assert torch.equal(alone[0], shared[0])
    assert torch.equal(alone[1], shared[1])


@SIDES
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_training_batches_start_anywhere_in_an_epoch(side: int, start: int) -> None:
    batches = training(noise_images(23, side), **EVERYTHING)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, start))
    assert len(whole) == 4
    assert len(rest) == 4 - start
    for found, expected in zip(rest, whole[start:], strict=True):
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
        assert (found.epoch, found.first_row) == (expected.epoch, expected.first_row)


def test_training_batches_load_only_the_images_from_the_start_on(monkeypatch: pytest.MonkeyPatch) -> None:
    images, loaded = noise_images(23, 100), []
    batches, load = training(images), ArrayImages.load

    def count(self: ArrayImages, index: int) -> Image.Image:
        loaded.append(index)
        return load(self, index)

    monkeypatch.setattr(ArrayImages, "load", count)
    list(batches.epoch(0, 3))
    assert len(loaded) == 5


@SIDES
def test_training_batches_are_evaluation_images_when_nothing_is_random(side: int) -> None:
    images = noise_images(10, side)
    found, labels = epoch(training(images, flip=0.0, crop_scale_min=1.0))
    expected = torch.cat([part for part, _ in EvaluationBatches(images, PLAIN, 5)])
    order = (found[:, None] - expected[None]).flatten(2).abs().amax(2).argmin(1)
    assert sorted(order.tolist()) == list(range(10))
    # both resize as Pillow does: up to a grey value where its fixed-point weights round otherwise
    torch.testing.assert_close(found, expected[order], rtol=0, atol=1.01)
    assert labels.tolist() == images.labels[order.numpy()].tolist()


@SIDES
@pytest.mark.parametrize(
    "options", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}]
)
def test_training_batches_mix_images_and_labels_alike(side: int, options: dict[str, Any]) -> None:
    """Images of one grey level each, which is their class: the mean of a mixed image is the mean of its classes."""
    levels = np.arange(40, dtype=np.uint8)
    images = ArrayImages(np.broadcast_to(levels[:, None, None, None], (40, side, side, 3)), levels.astype(np.int64))
    found, targets = epoch(training(images, size=4, **options))
    assert (targets.shape, targets.dtype) == ((40, 50), torch.float32)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(targets.sum(1), torch.ones(40))
    torch.testing.assert_close(found.mean((1, 2, 3)), targets @ torch.arange(50.0), rtol=0, atol=1e-3)
    assert (targets.max(1).values < 1).float().mean() > 0.5
    assert len(targets.max(1).values.unique()) > 5  # every batch has a weight of its own


@SIDES
def test_training_batches_are_erased_after_normalization(side: int) -> None:
    white = ArrayImages(np.full((40, side, side, 3), 200, np.uint8), np.zeros(40, np.int64))
    found, _ = epoch(training(white, size=8, random_erasing_probability=1.0))
    erased = (found - 200).abs().amax(1) > 1
    assert (found.amax(1)[erased] < 6).all()  # noise of deviation 1, where pixels are 200
    share = erased.flatten(1).float().mean(1)
    assert share.min() > 0.01
    assert share.max() < 0.37
    assert len(share.unique()) > 20
    untouched, _ = epoch(training(white, size=8))
    assert (untouched - 200).abs().max() < 1e-3


@SIDES
@pytest.mark.parametrize(
    "options",
    [{"augmentation_policy": "trivialaugment"}, {"augmentation_policy": "autoaugment"}, {"color_jitter": 0.4}],
)
def test_training_batches_follow_policy_and_jitter(side: int, options: dict[str, Any]) -> None:
    images = noise_images(30, side)
    plain, changed = epoch(training(images, size=10)), epoch(training(images, size=10, **options))
    assert torch.equal(plain[1], changed[1])  # the same images in the same order
    differs = (plain[0] - changed[0]).abs().flatten(1).amax(1) > 1
    assert 0.4 < differs.float().mean() <= 1


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
    torch.testing.assert_close(always, never.flip(3), rtol=0, atol=1.01)  # rounded to whole grey values
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
    batches = TrainingBatches(grey, default_preprocess(24), BatchPlan(4, 2, Augmentation(0.5)))
    images, _ = epoch(batches)
    assert images.shape == (4, 3, 24, 24)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images.amin(dim=(0, 2, 3)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(images.amax(dim=(0, 2, 3)), expected, rtol=0, atol=1e-4)


def test_training_batches_shrink_when_there_are_fewer_images() -> None:
    batches = training(numbered_images(3), size=64)
    assert (batches.batch_size, len(batches)) == (3, 1)
    assert epoch(batches)[0].shape[0] == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_leave_the_global_random_state_alone(workers: int) -> None:
    images = noise_images(8, 100)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    list(EvaluationBatches(images, PLAIN, 4, workers))
    epoch(training(images, workers=workers, **EVERYTHING))
    epoch(training(noise_images(8, 32), **EVERYTHING))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_name_the_file_when_an_image_is_unreadable(tmp_path: Path, workers: int) -> None:
    folder = write_image_folder(tmp_path / "images", train=4, validation=4)
    data = open_data(str(folder))
    (folder / "train" / "dog" / "2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=re.escape(str(folder / "train" / "dog" / "2.png"))):
        training(data.train, workers=workers)
    Image.new("RGB", (200, 200)).save(folder / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=re.escape(str(folder / "train" / "dog" / "2.png"))) as caught:
        epoch(training(data.train, workers=workers, size=12))
    assert "\n" not in str(caught.value)
