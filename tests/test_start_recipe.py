"""The recipe to start from: complete, loadable, as recommended, and with the source of every value beside it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from convnext_deploy.catalog import recommend
from convnext_deploy.models.published import PUBLISHED
from convnext_deploy.models.ranking import rank
from convnext_deploy.recipe_file import load_recipe
from convnext_deploy.stage_config import FitConfig, QATConfig, TrainConfig
from convnext_deploy.start_recipe import create_start_recipe, write_recipe_text
from convnext_deploy.training.optimizer import scaled_learning_rate

# Data and memory that lead to every kind of recipe: each size of data, from scratch, with checkpointing, tiny batches.
CASES = ((6000, 4, None), (6000, 4, 2.0), (60_000, 10, 12.0), (2_000_000, 1000, 8.0), (3, 2, None))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_start_recipe_loads_and_equals_the_object(case: tuple[int, int, float | None], tmp_path: Path) -> None:
    images, classes, memory = case
    for candidate in rank(images, classes, gpu_memory_gb=memory)[0]:
        recipe = create_start_recipe(candidate, 224)
        path = tmp_path / f"{candidate.variant}.toml"
        path.write_text(write_recipe_text(recipe, candidate, images, classes), encoding="utf-8")
        assert load_recipe(path) == recipe


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_setting_of_the_start_recipe_has_its_source_beside_it(case: tuple[int, int, float | None]) -> None:
    images, classes, memory = case
    for candidate in rank(images, classes, gpu_memory_gb=memory)[0]:
        text = write_recipe_text(create_start_recipe(candidate, 224), candidate, images, classes)
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
        stages = {stage.name: stage for stage in create_start_recipe(candidate, 160).stages}
        assert {name: (stage.config.kind, stage.source) for name, stage in stages.items()} == {
            "model": ("train", None),
            "ptq": ("ptq", "model"),
            "qat": ("qat", "ptq"),
            "onnx-fp32": ("onnx", "model"),
            "onnx-int8": ("onnx", "qat"),
            "engine-int8": ("tensorrt", "onnx-int8"),
        }
        assert all(stage.gate.max_top1_drop_pp is not None for name, stage in stages.items() if name != "model")
        train, qat = stages["model"].config, stages["qat"].config
        assert isinstance(train, TrainConfig)
        assert isinstance(qat, QATConfig)
        published, settings = PUBLISHED[candidate.variant], candidate.settings
        assert train.model.weights == (f"timm/{published.weights}" if published else None)
        assert train.model.image_size == 160
        # the notes give learning rates at batch 128, recipes at batch 4096
        assert scaled_learning_rate(train.fit.base_learning_rate, 128) == pytest.approx(settings.learning_rate)
        same = {"epochs", "warmup_epochs", "label_smoothing", "drop_path_rate"}
        assert {name: getattr(train.fit, name) for name in same} == {name: getattr(settings, name) for name in same}
        expected = (candidate.batch_size, candidate.gradient_checkpointing)
        assert (train.fit.batch_size, train.fit.gradient_checkpointing) == expected
        assert (qat.fit.batch_size, qat.fit.gradient_checkpointing) == (max(1, expected[0] // 2), expected[1])
        untouched = {field.name for field in dataclasses.fields(FitConfig)} - {"batch_size", "gradient_checkpointing"}
        assert all(getattr(qat.fit, name) == getattr(QATConfig().fit, name) for name in untouched)


def mixing_lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith(("mixup_alpha", "cutmix_alpha"))]


@pytest.mark.parametrize(
    ("images", "lines"),
    [
        (6000, ["mixup_alpha = 0.0 # notes 5, small data", "cutmix_alpha = 0.0 # notes 5, small data"]),
        (60_000, ["mixup_alpha = 0.8 # notes 5, medium data", "cutmix_alpha = 1.0 # notes 5, medium data"]),
    ],
)
def test_start_recipe_mixes_images_where_the_notes_want_it(images: int, lines: list[str]) -> None:
    assert mixing_lines(recommend(images, 4).recipe_text) == lines


def test_start_recipe_mixes_no_images_for_the_smallest_networks() -> None:
    candidate = next(c for c in rank(60_000, 4)[0] if c.variant == "convnext_atto")
    recipe = create_start_recipe(candidate, 224)
    text = write_recipe_text(recipe, candidate, 60_000, 4)
    source = "# notes 3, for this size"
    assert mixing_lines(text) == [f"mixup_alpha = 0.0 {source}", f"cutmix_alpha = 0.0 {source}"]
