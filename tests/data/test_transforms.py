"""Evaluation transform and training crops against torchvision, Pillow and direct computation."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from convnext_deploy.artifacts.spec import Preprocess, default_preprocess
from convnext_deploy.config.choices import Interpolation
from convnext_deploy.data.pixels import as_array, to_channels
from convnext_deploy.data.transforms import crop_image, evaluation_transform, normalize, sample_crops


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth image with noise, so that a shift or another filter shows."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8))


def pixels(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def no_flips(count: int) -> NDArray[np.bool_]:
    return np.zeros(count, bool)


def preprocess(image_size: int, crop_pct: float, interpolation: Interpolation = "bicubic") -> Preprocess:
    return Preprocess(image_size, crop_pct, interpolation, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.6])
@pytest.mark.parametrize(("width", "height"), [(80, 50), (50, 81), (32, 32), (20, 31), (33, 200), (40, 36)])
def test_evaluation_transform_equals_torchvision(
    width: int, height: int, crop_pct: float, interpolation: Interpolation
) -> None:
    image = picture(width, height)
    mode = v2.InterpolationMode.BICUBIC if interpolation == "bicubic" else v2.InterpolationMode.BILINEAR
    reference = v2.Compose([v2.Resize(int(32 / crop_pct), mode), v2.CenterCrop(32)])
    found = evaluation_transform(image, preprocess(32, crop_pct, interpolation))
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(reference(image)))


@pytest.mark.parametrize("crop_pct", [1.0, 0.6])
@pytest.mark.parametrize(("width", "height"), [(80, 50), (50, 81), (32, 32), (32, 40), (20, 31)])
def test_evaluation_transform_resizes_both_sides_when_squashing(width: int, height: int, crop_pct: float) -> None:
    image, side = picture(width, height), int(32 / crop_pct)
    margin = round((side - 32) / 2)
    whole = image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)
    expected = whole.crop((margin, margin, margin + 32, margin + 32))
    squash = dataclasses.replace(preprocess(32, crop_pct), crop_mode="squash")
    assert np.array_equal(evaluation_transform(image, squash), np.asarray(expected))


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_evaluation_transform_equals_pillow(interpolation: Interpolation) -> None:
    image = picture(96, 64)
    expected = image.resize((54, 36), Image.Resampling[interpolation.upper()]).crop((11, 2, 43, 34))
    found = evaluation_transform(image, preprocess(32, 32 / 36, interpolation))
    assert np.array_equal(found, np.asarray(expected))


def test_evaluation_transform_is_identity_when_image_has_the_size() -> None:
    image = picture(48, 48)
    assert np.array_equal(evaluation_transform(image, preprocess(48, 1.0)), np.asarray(image))


def test_evaluation_transform_crops_without_resizing_when_shorter_side_fits() -> None:
    image = picture(48, 32)
    assert np.array_equal(evaluation_transform(image, preprocess(32, 1.0)), np.asarray(image)[:, 8:40])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_transform_converts_every_mode(mode: str, channels: int) -> None:
    image = picture(40, 40).convert(mode)
    found = evaluation_transform(image, default_preprocess(32, in_channels=channels))
    assert found.shape == (32, 32, channels)
    assert np.ptp(found) > 100


def test_to_channels_and_as_array_keep_grey_values() -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert np.array_equal(as_array(to_channels(grey, 1))[..., 0], np.asarray(grey))
    assert np.array_equal(as_array(to_channels(grey, 3)), np.asarray(grey)[..., None].repeat(3, axis=2))


def test_normalize_equals_formula_and_is_channels_last_in_memory() -> None:
    settings_ = default_preprocess(32)
    batch = pixels(2, 5, 4)
    found = normalize(batch, settings_)
    expected = np.empty((2, 3, 5, 4))
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        expected[:, channel] = (batch.numpy()[..., channel] / 255 - mean) / std
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    scale_min=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_sample_crops_lie_inside_with_bounded_aspect_ratio(
    height: int, width: int, scale_min: float, seed: int
) -> None:
    top, left, h, w = sample_crops(np.random.default_rng(seed), 64, height, width, scale_min).T
    slack = 1e-9 * max(height, width)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height + slack).all()
    assert (left + w <= width + slack).all()
    assert (h * w > 0).all()
    ratio = w / h
    assert (ratio >= 3 / 4 - 1e-9).all()
    assert (ratio <= 4 / 3 + 1e-9).all()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(height=st.integers(30, 40), width=st.integers(30, 40), scale_min=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_sample_crops_have_at_least_the_least_area(height: int, width: int, scale_min: float, seed: int) -> None:
    _, _, h, w = sample_crops(np.random.default_rng(seed), 64, height, width, scale_min).T
    assert (h * w >= scale_min * height * width * (1 - 1e-9)).all()


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (32, 32, (0, 0, 32, 32)),
        (30, 40, (0, 0, 30, 40)),
        (40, 30, (0, 0, 40, 30)),
        (30, 60, (0, 10, 30, 40)),
        (90, 30, (25, 0, 40, 30)),
    ],
)
def test_sample_crops_give_largest_centred_box_when_nothing_fits(
    height: int, width: int, box: tuple[float, ...]
) -> None:
    boxes = sample_crops(np.random.default_rng(0), 3, height, width, 1.0)
    np.testing.assert_allclose(boxes, np.tile(box, (3, 1)), rtol=0, atol=1e-6)


def test_sample_crops_are_spread_evenly() -> None:
    top, left, h, w = sample_crops(np.random.default_rng(0), 20_000, 64, 64, 0.1).T
    area, log_ratio = h * w / 64**2, np.log(w / h)
    assert np.histogram(area, bins=4, range=(0.1, 0.7))[0].std() < 0.05 * 5000
    assert np.histogram(log_ratio, bins=4, range=(-0.2, 0.2))[0].std() < 0.05 * 5000
    assert abs(log_ratio.mean()) < 4 * log_ratio.std() / 20_000**0.5
    for offset, free in ((top, 64 - h), (left, 64 - w)):
        assert np.mean(offset / free) == pytest.approx(0.5, abs=4 / (12 * 20_000) ** 0.5)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_image_equals_pillow(flip: bool) -> None:
    image = picture(60, 50)
    expected = image.crop((7, 5, 47, 35)).resize((24, 24), Image.Resampling.BICUBIC)
    if flip:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = crop_image(image, np.array([5.0, 7.0, 30.0, 40.0]), flip, 24)
    assert np.array_equal(found, np.asarray(expected))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), scale_min=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_crop_image_never_reaches_outside_the_image(height: int, width: int, scale_min: float, seed: int) -> None:
    white = Image.new("RGB", (width, height), "white")
    box = sample_crops(np.random.default_rng(seed), 1, height, width, scale_min)[0]
    assert crop_image(white, box, False, 8).min() == 255
