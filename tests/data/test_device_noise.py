"""Noise for erased rectangles that a GPU draws: the rectangles are those of the host, and images do not depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convnext_deploy.data import augmentation
from convnext_deploy.data.augmentation import draw_erasures, erase
from convnext_deploy.data.device_noise import erased_places, normal_noise

SIDE, COUNT = 24, 64
BOXES = draw_erasures(np.random.default_rng(3), COUNT, SIDE, SIDE, 0.7)


def generator_of(index: int) -> np.random.Generator:
    return np.random.default_rng((9, index))


def erased_by_device(monkeypatch: pytest.MonkeyPatch, rows: slice) -> torch.Tensor:
    """Erase on the CPU as on a GPU."""
    monkeypatch.setattr(augmentation, "_DRAWN_BY_HOST", ())
    images = torch.zeros(COUNT, 3, SIDE, SIDE)[rows]
    first = rows.start or 0
    return erase(images, BOXES[rows], lambda index: generator_of(first + index))


def test_the_same_pixels_are_erased_as_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    by_host = erase(torch.zeros(COUNT, 3, SIDE, SIDE), BOXES, generator_of)
    by_device = erased_by_device(monkeypatch, slice(None))
    assert torch.equal(by_device != 0, by_host != 0)
    assert by_device.is_contiguous(memory_format=torch.channels_last)


def test_noise_of_an_image_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = erased_by_device(monkeypatch, slice(None))
    assert torch.equal(erased_by_device(monkeypatch, slice(20, 41)), whole[20:41])


def test_noise_is_normal_and_independent() -> None:
    keys = torch.tensor([5, 6]).repeat_interleave(200_000)
    noise = normal_noise(keys, torch.arange(200_000).repeat(2), 3).double()
    assert noise.mean().abs() < 5 / noise.numel() ** 0.5
    assert noise.std().item() == pytest.approx(1, abs=0.005)
    for bound, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert (noise.abs() < bound).double().mean().item() == pytest.approx(share, abs=0.002)
    neighbours = [noise[1:, 0] * noise[:-1, 0], noise[:, 0] * noise[:, 1], noise[:200_000] * noise[200_000:]]
    assert all(product.mean().abs() < 0.01 for product in neighbours)


def test_nothing_to_erase() -> None:
    places, image, within = erased_places(np.zeros((4, 4), np.int64), SIDE, SIDE, torch.device("cpu"))
    assert (len(places), len(image), len(within)) == (0, 0, 0)
