"""The recipe to start from: complete, loadable, as recommended, and with the source of every value beside it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from convnext_deploy.api.recommend import recommend
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.models.zoo.published import PUBLISHED
from convnext_deploy.models.zoo.ranking import rank
from convnext_deploy.models.zoo.starter_recipe import create_start_recipe, recommended_fit, write_recipe_text
from convnext_deploy.models.zoo.training_settings import STRONG_AUGMENTATION, combine, settings_for_size
from convnext_deploy.training.optimizer import scaled_learning_rate

# Data and memory that lead to every kind of recipe: each size of data, from scratch, with checkpointing, tiny batches.
CASES = ((6000, 4, None), (6000, 4, 2.0), (60_000, 10, 12.0), (2_000_000, 1000, 8.0), (3, 2, None))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_start_recipe_loads_and_equals_the_object(case: tuple[int, int, float | None], tmp_path: Path) -> None:
    images, classes, memory = case
    for candidate in rank(images, classes, gpu_memory_gb=memory)[0]:
        recipe = create_start_recipe(candidate, 224, images)
        path = tmp_path / f"{candidate.variant}.toml"
        path.write_text(write_recipe_text(recipe, candidate, images, classes), encoding="utf-8")
        assert load_recipe(path) == recipe


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_setting_of_the_start_recipe_has_its_source_beside_it(case: tuple[int, int, float | None]) -> None:
    images, classes, memory = case
    for candidate in rank(images, classes, gpu_memory_gb=memory)[0]:
        text = write_recipe_text(create_start_recipe(candidate, 224, images), candidate, images, classes)
        stage = ""
        for line in text.splitlines():
            stage = line if line.startswith("[[") else stage
            key = line.split(" = ")[0]
            plain = not line or line[0] in "#[" or (stage and key in ("kind", "name", "source") and "#" not in line)
            assert plain or re.search(r"  # \S", line), line
            assert len(line) <= 132, line


@pytest.mark.parametrize("case", CASES, ids=str)
def test_start_recipe_trains_as_recommended(case: tuple[int, int, float | None]) -> None:
    images, classes, memory = case
    for candidate in rank(images, classes, gpu_memory_gb=memory)[0]:
        stages = {stage.name: stage for stage in create_start_recipe(candidate, 160, images).stages}
        assert {name: (stage.config.kind, stage.source) for name, stage in stages.items()} == {
            "model": ("train", None),
            "quantize": ("quantize", "model"),
            "onnx-fp32": ("onnx", "model"),
            "onnx-int8": ("onnx", "quantize"),
            "engine-int8": ("tensorrt", "onnx-int8"),
        }
        assert all(stage.gate.max_top1_drop_pp is not None for name, stage in stages.items() if name != "model")
        train, quantize = stages["model"].config, stages["quantize"].config
        assert isinstance(train, TrainConfig)
        assert isinstance(quantize, QuantizeConfig)
        assert quantize == dataclasses.replace(QuantizeConfig(), fit=quantize.fit)
        published, settings = PUBLISHED[candidate.variant], candidate.settings
        assert train.model.weights == (f"timm/{published.weights}" if published else None)
        assert train.model.image_size == 160
        # the tables give learning rates at batch 128, recipes at batch 4096
        assert scaled_learning_rate(train.fit.linear_learning_rate, 128) == pytest.approx(settings.learning_rate)
        same = {"epochs", "warmup_epochs", "label_smoothing", "drop_path_rate"}
        assert {name: getattr(train.fit, name) for name in same} == {name: getattr(settings, name) for name in same}
        expected = (candidate.batch_size, candidate.gradient_checkpointing)
        assert (train.fit.batch_size, train.fit.gradient_checkpointing) == expected
        assert (quantize.fit.batch_size, quantize.fit.gradient_checkpointing) == (max(1, expected[0] // 2), expected[1])
        assert quantize.fit.crop_scale_min == train.fit.crop_scale_min
        touched = {"batch_size", "gradient_checkpointing", "crop_scale_min"}
        untouched = {field.name for field in dataclasses.fields(FitConfig)} - touched
        assert all(getattr(quantize.fit, name) == getattr(QATConfig().fit, name) for name in untouched)


def mixing_lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith(("mixup_alpha", "cutmix_alpha"))]


@pytest.mark.parametrize(
    ("images", "lines"),
    [
        (6000, ["mixup_alpha = 0.0 # ours for small data", "cutmix_alpha = 0.0 # ours for small data"]),
        (60_000, ["mixup_alpha = 0.8 # ours for medium data", "cutmix_alpha = 1.0 # ours for medium data"]),
    ],
)
def test_start_recipe_mixes_images_where_that_suits(images: int, lines: list[str]) -> None:
    assert mixing_lines(recommend(images, 4, gpu_memory_gb=40).recipe_text) == lines


def first_fit(images: int, variant: str) -> FitConfig:
    candidate = next(c for c in rank(images, 4)[0] if c.variant == variant)
    config = create_start_recipe(candidate, 224, images).stages[0].config
    assert isinstance(config, TrainConfig)
    return config.fit


@pytest.mark.parametrize(
    ("images", "variant", "layer_decay", "ema_decay"),
    [
        (6000, "convnext_zepto_rms", 0.9, 0.9999),
        (6000, "convnext_tiny", 0.7, 0.0),
        (6000, "convnextv2_tiny", 0.9, 0.9999),
        (60_000, "convnextv2_base", 0.6, 0.9999),
        (2_000_000, "convnext_xlarge", 0.8, 0.9999),
        (2_000_000, "convnextv2_small", 1.0, 0.9999),  # no published weights: from scratch, as in the paper
    ],
)
def test_start_recipe_fine_tunes_as_the_papers_do(
    images: int, variant: str, layer_decay: float, ema_decay: float
) -> None:
    fit = first_fit(images, variant)
    assert (fit.layer_decay, fit.ema_decay) == (layer_decay, ema_decay)


def test_training_from_scratch_has_one_rate_for_all_layers_and_the_average_of_the_paper() -> None:
    size = settings_for_size("convnext_tiny")
    assert size is not None
    fit = recommended_fit("convnext_tiny", combine(size, size), STRONG_AUGMENTATION, from_weights=False)
    assert (fit.layer_decay, fit.ema_decay) == (1.0, 0.9999)


def test_start_recipe_changes_few_images_mildly_and_many_as_in_the_paper() -> None:
    few, many = first_fit(6000, "convnext_tiny"), first_fit(60_000, "convnext_tiny")
    assert (few.crop_scale_min, few.color_jitter, few.augmentation_policy) == (0.5, 0.1, "none")
    assert (few.random_erasing_probability, few.mixup_alpha, few.cutmix_alpha) == (0.0, 0.0, 0.0)
    assert (many.crop_scale_min, many.color_jitter, many.augmentation_policy) == (0.08, 0.0, "randaugment")
    assert (many.randaugment_ops, many.randaugment_magnitude, many.random_erasing_probability) == (1, 27, 0.25)
    assert (many.mixup_alpha, many.cutmix_alpha) == (0.8, 1.0)
    atto = first_fit(60_000, "convnext_atto")
    assert (atto.augmentation_policy, atto.mixup_alpha, atto.cutmix_alpha) == ("randaugment", 0.0, 0.0)


def test_start_recipe_mixes_no_images_for_the_smallest_networks() -> None:
    candidate = next(c for c in rank(60_000, 4)[0] if c.variant == "convnext_atto")
    recipe = create_start_recipe(candidate, 224, 60_000)
    text = write_recipe_text(recipe, candidate, 60_000, 4)
    source = "# ours for this size"
    assert mixing_lines(text) == [f"mixup_alpha = 0.0 {source}", f"cutmix_alpha = 0.0 {source}"]
