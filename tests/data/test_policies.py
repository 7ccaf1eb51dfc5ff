"""Policies: what is drawn against the papers' numbers, what is applied against torchvision and against known answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from convnext_deploy.data.augmentation_policies import (
    Operations,
    apply_operations,
    draw_autoaugment,
    draw_color_jitter,
    draw_randaugment,
    draw_trivialaugment,
)

BILINEAR = v2.InterpolationMode.BILINEAR
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
PLAIN = ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")


def pictures(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Smooth images with noise, of little contrast, so that every operation shows."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 160 + 40
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth + torch.rand(smooth.shape, generator=generator) * 20).clamp(0, 255).to(torch.uint8)


def one(name: str, magnitude: float, images: Tensor) -> Tensor:
    """Apply one operation to every image."""
    count = len(images)
    return apply_operations(images, Operations(np.full((count, 1), name), np.full((count, 1), magnitude)))


def affine(image: Tensor, translate: list[int], shear: list[float], center: list[float] | None = None) -> Tensor:
    degrees = [math.degrees(math.atan(value)) for value in shear]
    result: Tensor = TF.affine(image, 0.0, translate, 1.0, degrees, interpolation=BILINEAR, center=center)
    return result


REFERENCE: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "ShearX": (lambda image, m: affine(image, [0, 0], [m, 0.0], [0, 0]), (-0.99, -0.09, 0.3)),
    "ShearY": (lambda image, m: affine(image, [0, 0], [0.0, m], [0, 0]), (-0.3, 0.11, 0.99)),
    "TranslateX": (lambda image, m: affine(image, [int(m), 0], [0.0, 0.0]), (-4.35, 0.9, 17.0)),
    "TranslateY": (lambda image, m: affine(image, [0, int(m)], [0.0, 0.0]), (-14.5, -0.9, 4.35)),
    "Rotate": (lambda image, m: TF.rotate(image, m, BILINEAR), (-135.0, -9.0, 30.0)),
    "Brightness": (lambda image, m: TF.adjust_brightness(image, 1 + m), (-0.9, -0.27, 0.99)),
    "Color": (lambda image, m: TF.adjust_saturation(image, 1 + m), (-0.9, -0.27, 0.99)),
    "Contrast": (lambda image, m: TF.adjust_contrast(image, 1 + m), (-0.9, -0.27, 0.99)),
    "Sharpness": (lambda image, m: TF.adjust_sharpness(image, 1 + m), (-0.9, -0.27, 0.99)),
    "Posterize": (lambda image, m: TF.posterize(image, int(m)), (2.0, 4.0, 8.0)),
    "Solarize": (lambda image, m: TF.solarize(image, 255 * m), (0.0, 0.5, 1.0)),
    "AutoContrast": (lambda image, m: TF.autocontrast(image), (0.0,)),
    "Equalize": (lambda image, m: TF.equalize(image), (0.0,)),
    "Invert": (lambda image, m: TF.invert(image), (0.0,)),
    "Identity": (lambda image, m: image, (0.0,)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 33)])
def test_apply_operations_equal_torchvision_image_by_image(channels: int, height: int, width: int) -> None:
    """All operations and magnitudes in one batch, in mixed order, twice in a row."""
    cases = [(name, magnitude) for name, (_, magnitudes) in REFERENCE.items() for magnitude in magnitudes] * 2
    order = np.random.default_rng(0).permutation(len(cases))
    chosen = [cases[i] for i in order]
    images = pictures(len(cases), channels, height, width)
    before = images.clone()
    names, magnitudes = np.array([[name] for name, _ in chosen]), np.array([[m] for _, m in chosen])
    found = apply_operations(images, Operations(names, magnitudes))
    assert torch.equal(images, before)
    assert found.dtype == torch.uint8
    differing = 0
    for image, result, (name, magnitude) in zip(images, found, chosen, strict=True):
        expected = REFERENCE[name][0](image, magnitude)
        # sums in another order round to another integer here and there
        assert (result.int() - expected.int()).abs().max() <= 1, (name, magnitude)
        differing += int((result != expected).sum())
    assert differing < 5e-3 * found.numel()


@pytest.mark.parametrize("name", [name for name in REFERENCE if name not in ("Identity", "Invert")])
def test_apply_operations_change_the_picture(name: str) -> None:
    images = pictures(2)
    magnitude = {"TranslateX": 5.0, "TranslateY": 5.0, "Rotate": 20.0, "Posterize": 3.0}.get(name, 0.5)
    assert (one(name, magnitude, images) != images).float().mean() > 0.2


def test_apply_operations_give_known_answers() -> None:
    images = pictures(3)
    moved = torch.zeros_like(images)
    moved[:, :, :, 5:] = images[:, :, :, :-5]
    assert torch.equal(one("TranslateX", 5.9, images), moved)
    lifted = torch.zeros_like(images)
    lifted[:, :, :-7] = images[:, :, 7:]
    assert torch.equal(one("TranslateY", -7.0, images), lifted)
    assert torch.equal(one("Rotate", 90.0, images), images.rot90(1, (2, 3)))
    assert torch.equal(one("Invert", 0.0, images), 255 - images)
    assert torch.equal(one("Posterize", 3.0, images), images // 32 * 32)
    assert torch.equal(one("Solarize", 100 / 255, images), torch.where(images >= 100, 255 - images, images))
    assert torch.equal(one("Brightness", -0.5, images), images // 2)
    assert torch.equal(one("Brightness", -1.0, images), torch.zeros_like(images))
    grey = one("Color", -1.0, images)
    luma = (images.double() * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(grey.double(), luma.floor().expand(-1, 3, -1, -1), rtol=0, atol=1)
    halves = torch.full((1, 3, 8, 8), 50, dtype=torch.uint8)
    halves[:, :, :4] = 150
    assert sorted(one("Contrast", 0.5, halves).unique().tolist()) == [25, 175]
    stretched = one("AutoContrast", 0.0, halves)
    assert stretched[0, 0, 7].unique().tolist() == [0]
    assert stretched[0, 0, 0].min() >= 254  # torchvision rounds down
    point = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    point[:, :, 2, 2] = 130
    assert one("Sharpness", -1.0, point)[0, 0, 1:4, 1:4].tolist() == [[10, 10, 10], [10, 50, 10], [10, 10, 10]]


def test_apply_operations_follow_the_order() -> None:
    images = pictures(2)
    names = np.array([["Brightness", "Invert"], ["Invert", "Brightness"]])
    found = apply_operations(images, Operations(names, np.full((2, 2), -0.5) * (names == "Brightness")))
    assert torch.equal(found[0], 255 - images[0] // 2)
    assert torch.equal(found[1], (255 - images[1]) // 2)


def test_draw_randaugment_has_the_magnitudes_of_the_paper() -> None:
    drawn = draw_randaugment(np.random.default_rng(0), 20_000, 32, operations=2, magnitude=9)
    assert drawn.names.shape == drawn.magnitudes.shape == (20_000, 2)
    expected = {"ShearX": 0.09, "ShearY": 0.09, "Rotate": 9.0, "Posterize": 7.0, "Solarize": 0.7}
    expected |= {"TranslateX": 0.3 * 32 * 150 / 331, "TranslateY": 0.3 * 32 * 150 / 331}
    expected |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.27)
    assert set(np.unique(drawn.names)) == {*SIGNED, *PLAIN}
    for name in (*SIGNED, *PLAIN):
        magnitudes = drawn.magnitudes[drawn.names == name]
        np.testing.assert_allclose(np.abs(magnitudes), expected.get(name, 0.0), rtol=1e-5)
        assert len(magnitudes) / 40_000 == pytest.approx(1 / 14, abs=5 * (1 / 14 * 13 / 14 / 40_000) ** 0.5)
        negative = (magnitudes < 0).mean()
        assert negative == (pytest.approx(0.5, abs=0.05) if name in SIGNED else 0)


@pytest.mark.parametrize(("operations", "magnitude", "shear"), [(1, 0, 0.0), (3, 15, 0.15), (4, 30, 0.3)])
def test_draw_randaugment_follows_operations_and_magnitude(operations: int, magnitude: int, shear: float) -> None:
    drawn = draw_randaugment(np.random.default_rng(0), 300, 224, operations, magnitude)
    assert drawn.names.shape == (300, operations)
    np.testing.assert_allclose(np.abs(drawn.magnitudes[drawn.names == "ShearX"]), shear, rtol=1e-5)


def test_draw_trivialaugment_takes_one_operation_and_any_magnitude() -> None:
    drawn = draw_trivialaugment(np.random.default_rng(0), 40_000, 224)
    assert drawn.names.shape == (40_000, 1)
    most = {"ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0, "Rotate": 135.0}
    most |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.99)
    for name in SIGNED:
        magnitudes = drawn.magnitudes[drawn.names == name]
        found, counts = np.unique(np.abs(magnitudes), return_counts=True)
        np.testing.assert_allclose(found, np.linspace(0, most[name], 31), rtol=1e-5, atol=1e-6)
        assert counts.min() > 0.5 * counts.mean()
        assert (magnitudes < 0).mean() == pytest.approx(30 / 31 / 2, abs=0.05)
    assert set(np.unique(drawn.magnitudes[drawn.names == "Posterize"])) == {2, 3, 4, 5, 6, 7, 8}
    assert Counter(drawn.names[:, 0].tolist()).keys() == {*SIGNED, *PLAIN}


@pytest.mark.parametrize(
    ("size", "pair", "probability", "magnitudes"),
    [
        # table 7 of the paper: policies 1 and 17 for CIFAR-10; table 9: policies 0 and 18 for ImageNet
        (32, ("Rotate", "TranslateX"), 0.7 * 0.3, (30 * 2 / 9, 32 * 150 / 331)),
        (32, ("Color", "Equalize"), 0.9 * 0.6, (0.9, 0.0)),
        (224, ("Posterize", "Rotate"), 0.4 * 0.6, (4.0, 30.0)),
        (224, ("ShearX", "Equalize"), 0.6 * 1.0, (0.3 * 5 / 9, 0.0)),
    ],
)
def test_draw_autoaugment_has_the_pairs_of_the_paper(
    size: int, pair: tuple[str, str], probability: float, magnitudes: tuple[float, float]
) -> None:
    count = 50_000
    drawn = draw_autoaugment(np.random.default_rng(0), count, size)
    assert drawn.names.shape == (count, 2)
    rows = (drawn.names == pair).all(axis=1)
    expected = probability / 25
    assert rows.mean() == pytest.approx(expected, abs=5 * (expected / count) ** 0.5)
    np.testing.assert_allclose(np.abs(drawn.magnitudes[rows]), np.tile(magnitudes, (rows.sum(), 1)), rtol=1e-5)
    assert (drawn.magnitudes[drawn.names == "Identity"] == 0).all()


def test_draw_color_jitter_is_uniform_in_value_and_order() -> None:
    drawn = draw_color_jitter(np.random.default_rng(0), 12_000, 0.4)
    orders = Counter(map(tuple, drawn.names.tolist()))
    assert len(orders) == 6
    assert {frozenset(order) for order in orders} == {frozenset(("Brightness", "Contrast", "Color"))}
    assert min(orders.values()) > 1800
    assert np.histogram(drawn.magnitudes, bins=4, range=(-0.4, 0.4))[0].min() > 0.97 * 9000
    assert np.abs(drawn.magnitudes).max() <= 0.4
    strong = draw_color_jitter(np.random.default_rng(0), 1000, 1.5).magnitudes
    assert -1 <= strong.min() < -0.99
    assert 1.49 < strong.max() <= 1.5


def test_color_jitter_equals_torchvision() -> None:
    images = pictures(24)
    drawn = draw_color_jitter(np.random.default_rng(0), 24, 0.4)
    found = apply_operations(images, drawn)
    adjust = {"Brightness": TF.adjust_brightness, "Contrast": TF.adjust_contrast, "Color": TF.adjust_saturation}
    for image, result, names, magnitudes in zip(images, found, drawn.names, drawn.magnitudes, strict=True):
        expected = image
        for name, magnitude in zip(names, magnitudes, strict=True):
            expected = adjust[name](expected, 1.0 + magnitude)
        # a difference of 1 in one step grows with the factors of those after it
        torch.testing.assert_close(result.int(), expected.int(), rtol=0, atol=4)
        assert (result == expected).float().mean() > 0.99
