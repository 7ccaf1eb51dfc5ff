"""Crop, flip and erasing against Pillow and direct computation; which settings are refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.augmentation import (
    change_colors_and_shapes,
    change_image,
    crop_and_flip,
    draw_erasures,
    draw_operations,
    erase,
)
from convnext_deploy.data.augmentation_policies import apply_operations, draw_color_jitter, draw_randaugment
from convnext_deploy.data.pixels import as_array, to_channels
from convnext_deploy.data.transforms import sample_crops
from convnext_deploy.errors import RecipeError


def change(pixels: Tensor, augmentation: Augmentation, seed: int) -> Tensor:
    """Draw for a batch and apply it."""
    plans = draw_operations(augmentation, np.random.default_rng(seed), *pixels.shape[:2])
    return change_colors_and_shapes(pixels, plans)


def noise(count: int, height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def no_flips(count: int) -> NDArray[np.bool_]:
    return np.zeros(count, bool)


def pillow_crop(image: Image.Image, box: NDArray[np.float64], size: int) -> NDArray[Any]:
    top, left, height, width = box
    edges = (left, top, left + width, top + height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=edges))


@pytest.mark.parametrize(("side", "size"), [(32, 32), (28, 64), (96, 24), (40, 32)])
def test_crop_and_flip_equals_pillow(side: int, size: int) -> None:
    images = noise(48, side, side)
    boxes = sample_crops(np.random.default_rng(1), 48, side, side, 0.08)
    found = crop_and_flip(torch.from_numpy(images), boxes, no_flips(48), size)
    expected = np.stack(
        [pillow_crop(Image.fromarray(image), box, size) for image, box in zip(images, boxes, strict=True)]
    )
    assert (found.shape, found.dtype) == ((48, size, size, 3), torch.uint8)
    assert found.is_contiguous()
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.max() <= 2  # Pillow's weights are fixed-point numbers
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(("height", "width"), [(30, 41), (41, 30)])
def test_crop_and_flip_equals_pillow_when_image_is_not_square(height: int, width: int) -> None:
    # On few grey values in the middle nothing overshoots, and Pillow's order of passes, which depends on the shape, is no matter.
    images = noise(16, height, width, 1) // 8 + 100
    boxes = sample_crops(np.random.default_rng(1), 16, height, width, 0.1)
    found = crop_and_flip(torch.from_numpy(images), boxes, no_flips(16), 32)
    for image, box, result in zip(images, boxes, found, strict=True):
        exact = pillow_crop(Image.fromarray(image[..., 0].astype(np.float32)), box, 32)
        np.testing.assert_allclose(result[..., 0].numpy(), exact, rtol=0, atol=1.3)  # rounded twice


def test_crop_and_flip_is_identity_when_box_is_the_whole_image() -> None:
    images = torch.from_numpy(noise(2, 24, 24))
    assert torch.equal(crop_and_flip(images, np.tile((0.0, 0.0, 24.0, 24.0), (2, 1)), no_flips(2), 24), images)


def test_crop_and_flip_mirrors_only_where_flipped() -> None:
    images = torch.from_numpy(noise(4, 40, 30))
    boxes = sample_crops(np.random.default_rng(1), 4, 40, 30, 0.2)
    plain = crop_and_flip(images, boxes, no_flips(4), 16)
    flipped = crop_and_flip(images, boxes, np.array([True, False, True, False]), 16)
    torch.testing.assert_close(flipped[::2].int(), plain[::2].flip(2).int(), rtol=0, atol=1)
    assert (flipped[::2] != plain[::2].flip(2)).float().mean() < 0.01
    assert torch.equal(flipped[1::2], plain[1::2])


def test_crop_and_flip_is_antialiased() -> None:
    stripes = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    found = crop_and_flip(stripes, np.array([(0.0, 0.0, 96.0, 96.0)]), no_flips(1), 32)
    # three columns of 200, 0, 200, … in one: without antialiasing every result is 200 or 0
    assert (found.int() - 100).abs()[:, :, 1:-1].max() < 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["randaugment", "autoaugment", "trivialaugment", "none"])
def test_change_colors_and_shapes_changes_images_and_keeps_their_form(policy: Any, channels: int) -> None:
    pixels = torch.from_numpy(noise(64, 32, 32, channels) // 2 + 30)
    before, state = pixels.clone(), torch.get_rng_state()
    augmentation = Augmentation(augmentation_policy=policy, color_jitter=0.4 if policy == "none" else 0.0)
    found = change(pixels, augmentation, 0)
    assert (found.shape, found.dtype) == (pixels.shape, torch.uint8)
    assert found.is_contiguous()
    assert (found != pixels).flatten(1).any(1).float().mean() > 0.5
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, change(pixels, augmentation, 0))
    assert not torch.equal(found, change(pixels, augmentation, 1))


def test_change_colors_and_shapes_does_nothing_when_nothing_is_asked_for() -> None:
    pixels = torch.from_numpy(noise(2, 8, 8))
    assert change(pixels, Augmentation(), 0) is pixels


def test_change_colors_and_shapes_jitters_after_the_policy() -> None:
    pixels = torch.from_numpy(noise(64, 16, 16))
    augmentation = Augmentation(
        augmentation_policy="randaugment", randaugment_ops=3, randaugment_magnitude=20, color_jitter=0.5
    )
    found = change(pixels, augmentation, 0)
    rng = np.random.default_rng(0)
    images = apply_operations(pixels.permute(0, 3, 1, 2), draw_randaugment(rng, 64, 16, 3, 20))
    images = apply_operations(images, draw_color_jitter(rng, 64, 0.5))
    assert torch.equal(found, images.permute(0, 2, 3, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["randaugment", "autoaugment", "trivialaugment", "none"])
def test_change_image_does_to_one_image_what_is_done_to_batches(policy: Any, channels: int) -> None:
    """Pillow's and torch's operations round otherwise, but an operation or a sign that differs changes most pixels by far."""
    coarse = noise(40, 6, 6, 3)
    augmentation = Augmentation(augmentation_policy=policy, color_jitter=0.4 if policy == "none" else 0.0)
    changed = 0
    for seed, small in enumerate(coarse):
        picture = Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC)
        pixels = as_array(to_channels(picture, channels))
        before = pixels.copy()
        found = change_image(pixels, augmentation, np.random.default_rng(seed))
        batch = torch.from_numpy(pixels.copy())[None]
        expected = change(batch, augmentation, seed)[0].numpy()
        assert found.shape == (40, 40, channels)
        assert found.dtype == np.uint8
        assert np.array_equal(pixels, before)
        assert np.median(np.abs(found.astype(int) - expected)) <= 3
        changed += not np.array_equal(found, pixels)
    assert changed >= 20
    assert change_image(pixels, Augmentation(), np.random.default_rng(0)) is pixels


def test_erase_replaces_the_boxes_by_noise_and_nothing_else() -> None:
    images = torch.randn(5, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    boxes = np.array([(0, 0, 20, 30), (5, 7, 3, 4), (0, 0, 0, 0), (19, 29, 1, 1), (2, 0, 18, 1)])
    found = erase(images, boxes, np.random.default_rng)
    assert torch.equal(images, before)
    assert found.is_contiguous(memory_format=torch.channels_last)
    inside = torch.zeros(5, 20, 30, dtype=torch.bool)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        inside[i, top : top + height, left : left + width] = True
    changed = found != images
    assert torch.equal(changed, inside[:, None].expand_as(changed))
    values = found[changed]
    assert len(values.unique()) > 0.999 * len(values)  # a draw for each pixel and channel
    assert values.mean().item() == pytest.approx(0.0, abs=5 / len(values) ** 0.5)
    assert values.std().item() == pytest.approx(1.0, abs=5 / len(values) ** 0.5)
    again = erase(images, boxes, np.random.default_rng)
    assert torch.equal(again, found)


def test_draw_erasures_have_areas_ratios_places_and_probability_of_the_paper() -> None:
    count, side = 20_000, 400
    top, left, height, width = draw_erasures(np.random.default_rng(0), count, side, side, 0.25).T
    erased = height > 0
    assert (erased == (width > 0)).all()
    assert erased.mean() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / count) ** 0.5)
    assert (top + height <= side).all()
    assert (left + width <= side).all()
    area, ratio = (height * width)[erased] / side**2, (height[erased] / width[erased])
    assert 0.019 < area.min() < 0.022
    assert 0.32 < area.max() < 0.335
    assert np.histogram(area, bins=4, range=(0.02, 0.3))[0].std() < 0.05 * erased.sum()
    assert 0.29 < ratio.min() < 0.32
    assert np.log(ratio).mean() == pytest.approx(0.0, abs=0.05)
    for offset, free in ((top, side - height), (left, side - width)):
        assert np.mean(offset[erased] / free[erased]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_draw_erasures_follow_the_probability(probability: float, share: float) -> None:
    boxes = draw_erasures(np.random.default_rng(0), 500, 32, 40, probability)
    assert boxes.dtype == np.int64
    assert (boxes[:, 2] > 0).mean() == share


def test_draw_erasures_are_empty_when_nothing_fits() -> None:
    assert not draw_erasures(np.random.default_rng(0), 50, 1, 1, 1.0)[:, 2:].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_scale_min", 0.0),
        ("crop_scale_min", 1.1),
        ("flip_probability", -0.1),
        ("color_jitter", -0.1),
        ("color_jitter", float("nan")),
        ("augmentation_policy", "augmix"),
        ("randaugment_ops", 0),
        ("randaugment_magnitude", 31),
        ("randaugment_magnitude", -1),
        ("random_erasing_probability", 1.5),
        ("mixup_alpha", -1.0),
        ("cutmix_alpha", float("inf")),
        ("mixing_probability", 2.0),
    ],
)
def test_augmentation_refuses_values_out_of_range(name: str, value: object) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(RecipeError, match=re.escape(f"{name} = {value!r} is ") + "(out of range|unknown); expected "):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("options", "mixes"),
    [
        ({}, False),
        ({"mixup_alpha": 0.8}, True),
        ({"cutmix_alpha": 1.0}, True),
        ({"cutmix_alpha": 1.0, "mixing_probability": 0.0}, False),
    ],
)
def test_augmentation_knows_whether_it_mixes(options: dict[str, Any], mixes: bool) -> None:
    assert Augmentation(**options).is_mixing is mixes
