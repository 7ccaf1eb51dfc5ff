"""What is chosen for the images where the user said nothing: the same for the same images, and what trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convnext_deploy.config.fit import base_for
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.models.zoo.presets import (
    preset_batch,
    preset_fit,
    preset_qat,
    preset_recovery,
    preset_size,
    preset_stem,
)
from convnext_deploy.training.optimizer import scaled_learning_rate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("recipe", "stage", "variant", "images"),
    [("small_medical", "model", "v2-tiny", 6000), ("medium", "student", "small", 100_000)],
)
def test_preset_of_fine_tuning_is_that_of_our_recipes(recipe: str, stage: str, variant: str, images: int) -> None:
    stages = {entry.name: entry.config for entry in load_recipe(ROOT / "recipes" / "data" / f"{recipe}.toml").stages}
    fit = stages[stage].fit  # type: ignore[attr-defined]  # of a stage that trains
    assert preset_fit(variant, images, from_weights=True) == dataclasses.replace(fit, accumulation_steps=1)


@pytest.mark.parametrize(
    ("variant", "images", "epochs", "batch", "peak"),
    [
        ("tiny", 180, 40, 16, 1e-3 / 8**0.5),
        ("atto", 180, 40, 16, 1e-3 / 8**0.5),
        ("base", 180, 40, 16, 5e-4 / 8**0.5),
        ("test_convnext", 20, 40, 8, 1e-3 / 4),
        ("atto", 6000, 125, 128, 1e-3),
        ("atto", 50_000, 250, 128, 2.5e-4),  # where the ranges of network and data meet
    ],
)
def test_preset_from_scratch_has_rates_that_train(
    variant: str, images: int, epochs: int, batch: int, peak: float
) -> None:
    fit = preset_fit(variant, images, from_weights=False)
    assert (fit.epochs, fit.batch_size) == (epochs, batch)
    assert scaled_learning_rate(fit.linear_learning_rate, fit.batch_size) == pytest.approx(peak, rel=1e-3)
    assert fit.layer_decay == 1.0


def test_preset_of_few_images_from_weights_has_their_rate_for_its_batch() -> None:
    few, many = (preset_fit("tiny", images, from_weights=True) for images in (180, 6000))
    assert (few.layer_decay, few.batch_size, few.epochs) == (0.7, 16, 40)
    rates = [scaled_learning_rate(fit.linear_learning_rate, fit.batch_size) for fit in (few, many)]
    assert rates[0] == pytest.approx(rates[1] / 8**0.5, rel=1e-3)


def test_preset_of_recovery_trains_all_weights_in_few_epochs_of_mild_crops() -> None:
    for variant, images, epochs in (
        ("atto", 50_000, 30),
        ("base", 2_000_000, 30),
        ("tiny", 180, 30),
        ("tiny", 6000, 30),
    ):
        usual, fit = preset_fit(variant, images, from_weights=True), preset_recovery(variant, images)
        assert (fit.epochs, fit.batch_size) == (epochs, usual.batch_size)
        rates = [scaled_learning_rate(each.linear_learning_rate, each.batch_size) for each in (usual, fit)]
        assert rates[1] == pytest.approx(4 * rates[0])
        assert (fit.layer_decay, fit.drop_path_rate, fit.ema_decay, fit.head_only_epochs) == (1.0, 0.0, 0.0, 0.0)
        assert (fit.crop_scale_min, fit.augmentation_policy, fit.random_erasing_probability) == (0.4, "none", 0.0)
        assert fit.warmup_epochs < 1
    assert preset_recovery("atto", 50_000).base_learning_rate == base_for(1e-3, 128, 128)


def test_preset_batch_leaves_few_images_steps_enough() -> None:
    assert [preset_batch(images) for images in (1, 20, 96, 180, 767, 768, 10**6)] == [8, 8, 16, 16, 64, 128, 128]


def test_preset_size_is_small_for_few_images_and_never_above_their_own() -> None:
    assert [preset_size(images, 300) for images in (180, 1999, 2000, 20_000)] == [64, 64, 128, 224]
    assert [preset_size(50_000, side) for side in (8, 32, 33, 500)] == [32, 32, 64, 224]
    assert [preset_stem(side) for side in (32, 63, 64, 224)] == [2, 2, 4, 4]


def test_preset_of_quantization_aware_training_takes_some_hundred_steps_at_the_rate_of_fine_tuning() -> None:
    usual = QATConfig().fit
    few, many = preset_qat(usual, 180), preset_qat(usual, 50_000)
    assert (few.epochs, few.batch_size) == (19, 16)
    assert (many.epochs, many.batch_size) == (5, 64)
    peaks = [scaled_learning_rate(fit.linear_learning_rate, fit.batch_size) for fit in (few, many)]
    assert peaks == pytest.approx([5e-5 * (batch / 512) ** 0.5 for batch in (16, 64)], rel=1e-3)
