"""Distillation with the teacher's predictions on disk: the same training, and a teacher that is asked once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.data.datasets import ArrayImages, Data
from convnext_deploy.errors import RecipeError
from convnext_deploy.stages import distill
from convnext_deploy.training.teacher import Teacher
from tests.shared import heavy_except
from tests.stages.conftest import FIT, ROWS, Train
from tests.stages.test_distill import MODEL, STUDENT
from tests.weights import assert_equal_states, random_network

ROUNDING = 2.0**-11  # of half precision, relative
MIXED = dataclasses.replace(FIT, mixup_alpha=0.8, cutmix_alpha=1.0, accumulation_steps=2)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())


@pytest.mark.parametrize(
    ("method", "fit", "temperature"),
    [
        pytest.param(
            method,
            fit,
            temperature,
            # by default each method once, and each way of training once
            marks=[] if (method, name) in {("kd", "warm"), ("hard-label", "mixed")} else pytest.mark.heavy,
            id=f"{method}-{name}",
        )
        for method in ("kd", "teacher-only", "hard-label", "dkd")
        for name, fit, temperature in (("plain", FIT, 1.0), ("warm", FIT, 4.0), ("mixed", MIXED, 1.0))
    ],
)
def test_distill_with_the_cache_equals_that_without_it_within_half_precision(
    method: Any, fit: FitConfig, temperature: float, train: Train
) -> None:
    """Rounding moves the logarithms of the teacher's probabilities by a share of ROUNDING, and the loss likewise.

    AdamW divides gradients by their size, so that small ones, which rounding moves most, count like the large ones: the weights
    are given 32 times as much of the way that they went.
    """
    options: dict[str, Any] = {"method": method, "temperature": temperature}
    plain, plain_history = train(fit, teacher_cache=False, **options)
    cached, history = train(fit, **options)
    again, history_again = train(fit, **options)
    way = distance(plain, random_network(STUDENT).state_dict())
    assert distance(cached, plain) < 32 * ROUNDING * way
    for row, expected in zip(history, plain_history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=2 * ROUNDING)
    if method == "hard-label":  # rounding moves no class
        assert_equal_states(cached, plain)
        assert history == plain_history
    assert_equal_states(again, cached)
    assert history_again == history


@pytest.mark.parametrize("method", heavy_except(("kd", "dkd"), ("kd", "teacher-only", "hard-label", "dkd")))
@pytest.mark.parametrize("temperature", heavy_except((4.0,), (1.0, 4.0)))
def test_distill_with_few_classes_follows_the_smoothed_probabilities(
    method: Any, temperature: float, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same training with a teacher that itself says what `teacher_cache_top_k` keeps: Shen and Xing's marginal smoothing."""
    options: dict[str, Any] = {"method": method, "temperature": temperature}
    cached, history = train(teacher_cache_top_k=1, **options)
    forward = Teacher.forward

    def smooth(teacher: Teacher, images: Tensor) -> Tensor:
        p = (forward(teacher, images).double() / temperature).softmax(1)
        best = p == p.max(1, keepdim=True).values
        rest = (1 - p.max(1, keepdim=True).values) / (p.shape[1] - 1)
        return (temperature * torch.where(best, p, rest).log()).float()

    monkeypatch.setattr(Teacher, "forward", smooth)
    expected, expected_history = train(teacher_cache=False, **options)
    way = distance(expected, random_network(STUDENT).state_dict())
    assert distance(cached, expected) < 32 * ROUNDING * way
    for row, wanted in zip(history, expected_history, strict=True):
        assert row["train_loss"] == pytest.approx(wanted["train_loss"], rel=2 * ROUNDING)


def test_distill_asks_the_teacher_once_for_epochs_that_repeat(train: Train, asked: list[int]) -> None:
    fit = dataclasses.replace(FIT, augmentation_epochs=1)
    train(fit)
    assert sum(asked) == ROWS
    assert asked.count(0) == 1  # and loaded once
    asked.clear()
    train(dataclasses.replace(fit, epochs=5, augmentation_epochs=2))
    assert sum(asked) == ROWS  # the first epoch was there
    asked.clear()
    train(dataclasses.replace(fit, epochs=7, augmentation_epochs=2))
    assert asked == []


def test_distill_asks_no_teacher_for_another_student_of_the_same_crops(train: Train, asked: list[int]) -> None:
    train()
    assert sum(asked) == 3 * ROWS
    asked.clear()
    other = dataclasses.replace(
        FIT, base_learning_rate=0.5, label_smoothing=0.0, accumulation_steps=3, drop_path_rate=0.0
    )
    train(other, seed=9, method="dkd", distill_loss_weight=0.9)
    train(FIT, seed=9, start="large student", model=dataclasses.replace(MODEL, name="test_convnext"))
    train(dataclasses.replace(FIT, epochs=2, augmentation_epochs=1), seed=1)
    train(temperature=4.0)
    train(temperature=2.0, standardize_logits=True)
    assert asked == []


def test_as_many_classes_as_there_are_share_what_is_kept_of_all(train: Train, asked: list[int]) -> None:
    fit = dataclasses.replace(FIT, epochs=1)
    train(fit)
    assert sum(asked) == ROWS
    asked.clear()
    train(fit, temperature=2.0, teacher_cache_top_k=3)
    assert asked == []


CHANGES: dict[str, dict[str, Any]] = {
    "seed of the crops": {"fit": dataclasses.replace(FIT, augmentation_seed=6)},
    "seed of the recipe": {"fit": dataclasses.replace(FIT, augmentation_seed=None)},
    "batch size": {"fit": dataclasses.replace(FIT, batch_size=9)},
    "crops": {"fit": dataclasses.replace(FIT, crop_scale_min=0.5)},
    "mirror images": {"fit": dataclasses.replace(FIT, flip_probability=0.0)},
    "mixing": {"fit": dataclasses.replace(FIT, mixup_alpha=0.1)},
    "arithmetic": {"fit": dataclasses.replace(FIT, autocast="bf16")},
    "temperature of the tail": {"temperature": 2.0, "teacher_cache_top_k": 1},
    "temperature of a mean": {"temperature": 2.0, "teachers": ("teacher", "other")},
    "classes kept": {"teacher_cache_top_k": 1},
    "teacher": {"teachers": ("other",)},
    "teachers": {"teachers": ("teacher", "other")},
    "image size": {"model": dataclasses.replace(MODEL, image_size=32)},
}


def plans(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache" / "teachers").iterdir()}


_QUICK = ("seed of the crops", "temperature of the tail", "temperature of a mean")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, id=name, marks=[] if name in _QUICK else [pytest.mark.slow])
        for name, change in CHANGES.items()
    ],
)
def test_distill_keeps_predictions_of_other_crops_and_teachers_apart(
    change: dict[str, Any], train: Train, asked: list[int], tmp_path: Path
) -> None:
    quick = dataclasses.replace(FIT, epochs=1)
    train(quick, **{**change, "temperature": 1.0} if "temperature" in change else {})
    before = plans(tmp_path)
    asked.clear()
    changed = {name: value for name, value in change.items() if name != "fit"}
    train(dataclasses.replace(change.get("fit", FIT), epochs=1), **changed)
    assert sum(asked) == ROWS * len(change.get("teachers", "1"))
    assert len(plans(tmp_path) - before) == len(before) == 1


def test_distill_keeps_predictions_of_other_images_and_networks_apart(
    train: Train, asked: list[int], small_data: Data, weights: dict[str, Artifact], tmp_path: Path
) -> None:
    quick = dataclasses.replace(FIT, epochs=1)
    images = [np.asarray(small_data.train.load(index)) for index in range(ROWS)]
    arrays, labels = np.stack(images), small_data.train.labels
    train(quick, data=dataclasses.replace(small_data, train=ArrayImages(arrays, labels)))
    arrays = arrays.copy()
    arrays[3, 4, 5] ^= 1
    train(quick, data=dataclasses.replace(small_data, train=ArrayImages(arrays, labels)))
    assert sum(asked) == 2 * ROWS
    train(quick)
    # the same weights with another activation, or on images normalized otherwise, are another teacher
    teacher = weights["teacher"]
    weights["teacher"] = dataclasses.replace(teacher, model=dataclasses.replace(teacher.model, activation="relu"))
    train(quick)
    weights["teacher"] = dataclasses.replace(
        teacher, preprocess=dataclasses.replace(teacher.preprocess, mean=(0.1, 0.2, 0.3))
    )
    train(quick)
    assert sum(asked) == 5 * ROWS
    assert len(plans(tmp_path)) == 5


def test_distill_keeps_predictions_of_another_version_apart(
    train: Train, asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick = dataclasses.replace(FIT, epochs=1)
    train(quick)
    monkeypatch.setattr(distill, "RESULT_VERSION", 0)
    train(quick)
    assert sum(asked) == 2 * ROWS
    assert len(plans(tmp_path)) == 2


def test_distill_config_refuses_what_the_cache_cannot_hold() -> None:
    with pytest.raises(RecipeError, match=r"^method = 'feature' needs the teacher's features, which teacher_cache"):
        DistillConfig(MODEL, "teacher", FIT, "feature", teacher_cache=True)
    with pytest.raises(RecipeError, match=r"^teacher_cache_top_k = -1 is out of range; expected >= 0\.$"):
        DistillConfig(MODEL, "teacher", FIT, teacher_cache_top_k=-1)
    for name in ("augmentation_epochs", "augmentation_seed"):
        with pytest.raises(RecipeError, match=rf"^{name} = -1 is out of range; expected >= 0\.$"):
            dataclasses.replace(FIT, **{name: -1})  # type: ignore[arg-type]
