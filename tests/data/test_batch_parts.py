"""What several processes get of each batch, and epochs that repeat the batches of earlier ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.datasets import ArrayImages, ImageSet
from convnext_deploy.data.loaders import Batch, BatchPlan, TrainingBatches
from convnext_deploy.errors import RecipeError
from convnext_deploy.system.distributed import World
from tests.data.test_loaders import PLAIN, noise_images, numbered_images
from tests.data.test_training_batches import EVERYTHING, SIDES

SIZE = 12
MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "crop and flip": {},
    "mixing": MIXING,
    "half of the batches mixed": {**MIXING, "mixing_probability": 0.5},
    "erasing": {"random_erasing_probability": 0.5},
    "jitter": {"color_jitter": 0.4},
    "policy": {"augmentation_policy": "trivialaugment"},
    "everything": EVERYTHING,
}


def training(
    images: ImageSet,
    *,
    size: int = SIZE,
    own_epochs: int = 0,
    world: World | None = None,
    workers: int = 0,
    **wanted: Any,
) -> TrainingBatches:
    return TrainingBatches(
        images,
        PLAIN,
        BatchPlan(size, 50, Augmentation(**{"crop_scale_min": 0.3, **wanted}), seed=3, own_epochs=own_epochs),
        workers=workers,
        world=world,
    )


def assert_same(found: Batch, expected: Batch) -> None:
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    assert found.labels.dtype == expected.labels.dtype
    assert (found.epoch, found.first_row) == (expected.epoch, expected.first_row)


def joined(parts: tuple[Batch, ...]) -> Batch:
    """Put together what the processes have of one batch, after checking that they agree on where it stands."""
    sizes = np.cumsum([0, *(len(part) for part in parts)])
    first = parts[0].first_row
    assert [(part.epoch, part.first_row - first) for part in parts] == [(parts[0].epoch, size) for size in sizes[:-1]]
    return Batch(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]), parts[0].epoch, first)


def of_all(processes: int, images: ImageSet, epoch: int, start: int = 0, **options: Any) -> list[Batch]:
    """Return the batches of an epoch, each put together from the parts of that many processes."""
    own = [training(images, world=World(rank, processes), **options) for rank in range(processes)]
    assert {(len(batches), batches.batch_size) for batches in own} == {(len(own[0]), SIZE)}
    return [joined(parts) for parts in zip(*(batches.epoch(epoch, start) for batches in own), strict=True)]


@SIDES
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_training_batches_of_several_processes_are_those_of_one(side: int, options: dict[str, Any]) -> None:
    images = noise_images(29, side)
    alone = list(training(images, **options).epoch(1))
    for processes in (2, 3, 12):
        found = of_all(processes, images, 1, **options)
        assert len(found) == len(alone) == 2
        for batch, expected in zip(found, alone, strict=True):
            assert_same(batch, expected)


@SIDES
def test_training_batches_of_several_processes_start_anywhere_and_repeat(side: int) -> None:
    images = noise_images(40, side)
    alone = list(training(images, own_epochs=2, **EVERYTHING).epoch(5, 1))
    found = of_all(3, images, 5, 1, own_epochs=2, workers=2, **EVERYTHING)
    assert len(found) == len(alone) == 2
    for batch, expected in zip(found, alone, strict=True):
        assert_same(batch, expected)
        assert batch.epoch == 1


@SIDES
def test_training_batches_of_processes_are_channels_last(side: int) -> None:
    for batch in training(noise_images(24, side), world=World(1, 2), **EVERYTHING).epoch(0):
        assert batch.images.shape == (6, 3, 32, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("options", "expected"), [({}, 4), (MIXING, 5), ({"random_erasing_probability": 1.0}, 4)])
def test_training_batches_of_a_process_load_only_its_images(
    options: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where batches are mixed a process needs one image more, which its first row is mixed with."""
    loaded: list[int] = []
    load = ArrayImages.load

    def count(self: ArrayImages, index: int) -> Image.Image:
        loaded.append(index)
        return load(self, index)

    batches = [training(noise_images(12, 100), world=World(rank, 3), **options) for rank in range(3)]
    monkeypatch.setattr(ArrayImages, "load", count)
    seen = []
    for own in batches:
        loaded.clear()
        assert [len(batch) for batch in own.epoch(0)] == [4]
        assert len(set(loaded)) == len(loaded) == expected
        seen.append(set(loaded))
    assert set.union(*seen) == set(range(12))
    assert sum(len(a & b) for a in seen for b in seen if a is not b) == 2 * 3 * (expected - 4)


def test_training_batches_refuse_a_batch_that_processes_cannot_share() -> None:
    text = "a batch of 12 images does not divide among 5 processes; use a batch_size that is a multiple of 5"
    for rank in range(5):
        with pytest.raises(RecipeError, match=f"^{re.escape(text)}[^\n]*$"):
            training(noise_images(29, 40), world=World(rank, 5))
    with pytest.raises(RecipeError, match=r"^a batch of 10 images does not divide .* and at most 10"):
        training(noise_images(10, 40), world=World(0, 4))  # a multiple of 4 is asked for already, of too few images


def numbers(batch: Batch) -> tuple[int, ...]:
    return tuple(batch.images.mean((1, 2, 3)).round().int().tolist())


@SIDES
def test_training_batches_repeat_the_same_rows_in_another_order(side: int) -> None:
    images = noise_images(100, side)
    batches = training(images, own_epochs=2, **EVERYTHING)
    plain = training(images, **EVERYTHING)
    own = [list(batches.epoch(number)) for number in range(2)]
    for number in range(2):
        for batch, expected in zip(own[number], plain.epoch(number), strict=True):
            assert_same(batch, expected)
        assert [batch.first_row for batch in own[number]] == [SIZE * k for k in range(8)]
    orders = {number % 2: [[batch.first_row for batch in own[number % 2]]] for number in range(2)}
    for number in range(2, 8):
        repeated = list(batches.epoch(number))
        assert {batch.epoch for batch in repeated} == {number % 2}
        for batch in repeated:
            assert_same(batch, own[number % 2][batch.first_row // SIZE])
        order = [batch.first_row for batch in repeated]
        assert sorted(order) == orders[number % 2][0]
        orders[number % 2].append(order)
    found = [tuple(order) for several in orders.values() for order in several[1:]]
    assert len({*found, tuple(orders[0][0])}) == 7  # no order comes twice
    assert not torch.equal(own[0][0].images, own[1][0].images)


def test_training_batches_repeat_in_an_order_that_depends_on_the_seed() -> None:
    images, orders = numbered_images(100), []
    for seed in (3, 4):
        batches = TrainingBatches(images, PLAIN, BatchPlan(5, 7, seed=seed, own_epochs=1))
        orders.append([batch.first_row for batch in batches.epoch(1)])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


@SIDES
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_training_batches_start_anywhere_in_a_repeated_epoch(side: int, start: int) -> None:
    batches = training(noise_images(50, side), own_epochs=2, **EVERYTHING)
    whole, rest = list(batches.epoch(5)), list(batches.epoch(5, start))
    assert (len(whole), len(rest)) == (4, 4 - start)
    for found, expected in zip(rest, whole[start:], strict=True):
        assert_same(found, expected)


def test_training_batches_have_epochs_of_their_own_when_none_repeats() -> None:
    batches = training(numbered_images(48), own_epochs=0)
    seen = [numbers(next(batches.epoch(number))) for number in range(4)]
    assert len(set(seen)) == 4
    assert [next(batches.epoch(number)).epoch for number in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("labels", [torch.arange(10), torch.rand(10, 3)])
@pytest.mark.parametrize(
    ("parts", "sizes"), [(1, [10]), (2, [5, 5]), (3, [4, 4, 2]), (4, [3, 3, 3, 1]), (20, [1] * 10)]
)
def test_batch_chunk_says_where_each_part_stands(labels: Tensor, parts: int, sizes: list[int]) -> None:
    batch = Batch(torch.rand(10, 3, 4, 4), labels, epoch=7, first_row=30)
    found = list(batch.chunk(parts))
    assert [len(part) for part in found] == sizes
    assert_same(joined(tuple(found)), batch)
    assert found[0].first_row == 30
