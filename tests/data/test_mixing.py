"""Mixup and CutMix against direct computation, torchvision and the papers' expectations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.mixup import cutmix, draw_box, mix, mixup


def batch(count: int = 6, height: int = 10, width: int = 8) -> tuple[Tensor, Tensor]:
    """Images that are channels-last in memory, as the loader yields them, and labels of 5 classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, height, width, generator=generator)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(count) * 2 % 5


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_mixup_equals_the_formula(weight: float) -> None:
    images, labels = batch()
    before = images.clone()
    found, targets = mixup(images, labels, 5, weight)
    assert torch.equal(images, before)
    assert (found.shape, found.dtype, targets.dtype) == (images.shape, torch.float32, torch.float32)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for i in range(6):
        partner = (i - 1) % 6
        expected = weight * images[i].double() + (1 - weight) * images[partner].double()
        torch.testing.assert_close(found[i].double(), expected, rtol=0, atol=1e-6)
        probabilities = np.zeros(5)
        probabilities[labels[i]] += weight
        probabilities[labels[partner]] += 1 - weight
        np.testing.assert_allclose(targets[i], probabilities, atol=1e-6)


def test_cutmix_takes_the_box_from_the_image_before() -> None:
    images, labels = batch()
    before = images.clone()
    found, targets = cutmix(images, labels, 5, (2, 3, 7, 8))
    assert torch.equal(images, before)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for i in range(6):
        partner = (i - 1) % 6
        for row in range(10):
            for column in range(8):
                inside = 2 <= row < 7 and 3 <= column < 8
                assert torch.equal(found[i, :, row, column], images[partner if inside else i, :, row, column])
        probabilities = np.zeros(5)
        probabilities[labels[i]] += 1 - 25 / 80
        probabilities[labels[partner]] += 25 / 80
        np.testing.assert_allclose(targets[i], probabilities, atol=1e-6)


def test_mixup_equals_torchvision() -> None:
    images, labels = batch()
    reference = v2.MixUp(alpha=0.8, num_classes=5)
    reference.make_params = lambda flat_inputs: {"lam": 0.37}
    expected = reference(images, labels)
    found = mixup(images, labels, 5, 0.37)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("box", [(0, 0, 10, 8), (4, 4, 4, 4), (1, 5, 9, 8)])
def test_cutmix_equals_torchvision(box: tuple[int, int, int, int]) -> None:
    images, labels = batch()
    top, left, bottom, right = box
    reference = v2.CutMix(num_classes=5)
    weight = 1 - (bottom - top) * (right - left) / 80
    reference.make_params = lambda flat_inputs: {"box": (left, top, right, bottom), "lam_adjusted": weight}
    expected = reference(images, labels)
    found = cutmix(images, labels, 5, box)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_draw_box_lies_inside_and_is_at_most_as_large_as_asked(
    height: int, width: int, weight: float, seed: int
) -> None:
    top, left, bottom, right = draw_box(np.random.default_rng(seed), weight, height, width)
    assert 0 <= top <= bottom <= height
    assert 0 <= left <= right <= width
    assert (bottom - top) * (right - left) <= (1 - weight) * height * width + 1e-6


def test_draw_box_has_the_aspect_ratio_of_the_image_and_is_centred_anywhere() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([draw_box(rng, 0.75, 200, 100) for _ in range(4000)])
    top, left, bottom, right = boxes.T
    whole = (top > 0) & (left > 0) & (bottom < 200) & (right < 100)
    assert set(zip((bottom - top)[whole].tolist(), (right - left)[whole].tolist(), strict=True)) == {(100, 50)}
    # the side is half of the image's: inside where the centre is in the middle half, one quarter of all places
    assert whole.mean() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 4000) ** 0.5 + 0.01)


def weights(count: int, **options: float) -> tuple[list[float], list[str]]:
    """Mix many batches of two one-coloured images; return the weight of each and what it was mixed by."""
    augmentation, rng = Augmentation(**options), np.random.default_rng(0)  # type: ignore[arg-type]
    images = torch.stack([torch.zeros(3, 24, 24), torch.ones(3, 24, 24)])
    found, kinds = [], []
    for _ in range(count):
        mixed, targets, _ = mix(images, torch.tensor([0, 1]), 2, augmentation, rng)
        found.append(float(targets[0, 0]))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1], rtol=0, atol=1e-5)
        values = mixed[0].unique().tolist()
        kinds.append("none" if found[-1] == 1 else "cutmix" if len(values) == 2 else "mixup")
    return found, kinds


@pytest.mark.parametrize("alpha", [0.2, 0.8, 3.0])
def test_mix_draws_mixup_weights_from_beta(alpha: float) -> None:
    found, kinds = weights(1000, mixup_alpha=alpha)
    assert "cutmix" not in kinds
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha), whose mean is 1/2
    assert np.mean(found) == pytest.approx(0.5, abs=4 * (variance / 1000) ** 0.5)
    assert np.var(found) == pytest.approx(variance, rel=0.1)


def test_mix_draws_cutmix_areas_as_the_paper_does() -> None:
    found, kinds = weights(3000, cutmix_alpha=1.0)
    assert "mixup" not in kinds
    # Independently: a side s = sqrt(1 - weight) around a uniform centre keeps s - s²/4 of it when clipped, in each direction.
    side = np.sqrt(1 - np.linspace(0, 1, 100_001))
    covered = np.mean((side - side**2 / 4) ** 2)
    assert 1 - np.mean(found) == pytest.approx(covered, abs=0.04)  # boxes have even numbers of pixels, rounded down
    assert 1 - np.mean(found) < covered


def test_mix_takes_each_of_both_for_half_the_batches() -> None:
    _, kinds = weights(800, mixup_alpha=0.8, cutmix_alpha=1.0)
    assert kinds.count("mixup") == pytest.approx(400, abs=5 * 200**0.5)
    assert kinds.count("cutmix") > 340  # but boxes without pixels


def test_mix_leaves_batches_with_the_probability_left() -> None:
    found, _ = weights(800, mixup_alpha=1.0, mixing_probability=0.3)
    assert sum(weight != 1 for weight in found) == pytest.approx(240, abs=5 * 168**0.5)
    images, labels = batch()
    left, targets, weight = mix(
        images, labels, 5, Augmentation(mixup_alpha=1.0, mixing_probability=0.0), np.random.default_rng(0)
    )
    assert torch.equal(left, images)
    assert torch.equal(targets, torch.eye(5)[labels])
    assert weight == 1.0


def test_mixed_targets_are_what_cross_entropy_takes() -> None:
    images, labels = batch()
    _, targets = mixup(images, labels, 5, 0.25)
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    expected = 0.25 * F.cross_entropy(logits, labels) + 0.75 * F.cross_entropy(logits, labels.roll(1))
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected)
