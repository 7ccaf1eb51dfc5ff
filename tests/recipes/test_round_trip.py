"""Values within the ranges survive a recipe file exactly; values outside are refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.errors import RecipeError


def between(low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=low_open, exclude_max=high_open)


FITS = st.builds(
    FitConfig,
    epochs=st.integers(1, 10_000),
    batch_size=st.integers(1, 65_536),
    base_learning_rate=between(0, 10, low_open=True),
    warmup_epochs=between(0, 1000),
    final_learning_rate_ratio=between(0, 1),
    weight_decay=between(0, 10),
    label_smoothing=between(0, 1, high_open=True),
    drop_path_rate=between(0, 1, high_open=True),
    head_input_dropout=between(0, 1, high_open=True),
    head_dropout=between(0, 1, high_open=True),
    layer_scale_init=between(0, 10, low_open=True),
    crop_scale_min=between(0, 1, low_open=True),
    flip_probability=between(0, 1),
    autocast=st.sampled_from(["auto", "off", "bf16", "fp16"]),
    gradient_checkpointing=st.booleans(),
    color_jitter=between(0, 10),
    augmentation_policy=st.sampled_from(["none", "randaugment", "autoaugment", "trivialaugment"]),
    randaugment_ops=st.integers(1, 100),
    randaugment_magnitude=st.integers(0, 30),
    random_erasing_probability=between(0, 1),
    mixup_alpha=between(0, 10),
    cutmix_alpha=between(0, 10),
    mixing_probability=between(0, 1),
    gradient_clip_norm=st.none() | between(0, 10, low_open=True),
    layer_decay=between(0, 1, low_open=True),
    frozen_stages=st.integers(0, 4),
    head_only_epochs=between(0, 1),
    ema_decay=between(0, 1, high_open=True),
    augmentation_epochs=st.integers(0, 10_000),
    augmentation_seed=st.none() | st.integers(0, 2**63 - 1),
    compile=st.booleans(),
    balance_labels=st.booleans(),
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
MODELS = st.builds(
    ModelConfig,
    name=TEXTS,
    image_size=st.integers(64, 1024),
    patch_size=st.sampled_from([2, 4, 8]),
    in_channels=st.sampled_from([1, 3]),
    crop_pct=st.none() | between(0.1, 1.0),
    head_hidden_size=st.none() | st.integers(0, 4096),
    head_activation=st.sampled_from(["gelu", "relu"]),
    weights=st.none() | TEXTS.filter(bool),
)
OUTSIDE = {
    "epochs": st.integers(max_value=0),
    "batch_size": st.integers(max_value=0),
    "base_learning_rate": st.floats(max_value=0, allow_infinity=False),
    "warmup_epochs": st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    "final_learning_rate_ratio": st.floats(min_value=1, exclude_min=True, allow_infinity=False),
    "weight_decay": st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    "label_smoothing": st.floats(min_value=1, allow_infinity=False),
    "drop_path_rate": st.floats(min_value=1, allow_infinity=False),
    "head_input_dropout": st.floats(min_value=1, allow_infinity=False),
    "head_dropout": st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    "layer_scale_init": st.floats(max_value=0, allow_infinity=False),
    "crop_scale_min": st.floats(max_value=0, allow_infinity=False),
    "flip_probability": st.floats(min_value=1, exclude_min=True, allow_infinity=False),
    "color_jitter": st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    "randaugment_ops": st.integers(max_value=0),
    "randaugment_magnitude": st.integers(max_value=-1) | st.integers(min_value=31),
    "random_erasing_probability": st.floats(min_value=1, exclude_min=True, allow_infinity=False),
    "mixup_alpha": st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    "cutmix_alpha": st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    "mixing_probability": st.floats(min_value=1, exclude_min=True, allow_infinity=False),
    "gradient_clip_norm": st.floats(max_value=0, allow_infinity=False),
    "accumulation_steps": st.integers(max_value=0) | st.integers(min_value=129),  # the batch size is 128
    "layer_decay": st.floats(min_value=1, exclude_min=True, allow_infinity=False),
    "frozen_stages": st.integers(max_value=-1) | st.integers(min_value=5),
    "head_only_epochs": st.floats(max_value=0, exclude_max=True, allow_infinity=False),
    "ema_decay": st.floats(min_value=1, allow_infinity=False),
    "augmentation_epochs": st.integers(max_value=-1),
    "augmentation_seed": st.integers(max_value=-1),
    "patience": st.integers(max_value=-1),
}


def as_toml(value: object) -> str:
    """Write a string, number or truth value as TOML reads it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_recipe(path: Path, model: ModelConfig, fit: dict[str, object]) -> Path:
    lines = ['name = "r"', "[[stages]]", 'kind = "train"', "[stages.model]"]
    given = {key: value for key, value in dataclasses.asdict(model).items() if value is not None}  # TOML has no null
    lines += [f"{key} = {as_toml(value)}" for key, value in given.items()]
    lines += ["[stages.fit]", *(f"{key} = {as_toml(value)}" for key, value in fit.items() if value is not None)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@settings(max_examples=100, deadline=None, derandomize=True)
@given(model=MODELS, fit=FITS)
def test_load_recipe_returns_exactly_the_values_written(
    tmp_path_factory: pytest.TempPathFactory, model: ModelConfig, fit: FitConfig
) -> None:
    path = write_recipe(tmp_path_factory.getbasetemp() / "round-trip.toml", model, dataclasses.asdict(fit))
    assert load_recipe(path).stages[0].config == TrainConfig(model, fit)


@pytest.mark.parametrize("name", OUTSIDE)
def test_load_recipe_refuses_every_value_outside_its_range(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "outside.toml"

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(value=OUTSIDE[name])
    def check(value: float) -> None:
        write_recipe(path, ModelConfig("atto", crop_pct=1.0), {name: value})
        with pytest.raises(RecipeError, match=rf"stage 'train': fit: {name} = .* is out of range"):
            load_recipe(path)

    check()


def test_outside_lists_every_number_of_a_fit() -> None:
    names = {field.name for field in dataclasses.fields(FitConfig)}
    assert set(OUTSIDE) == names - {
        "autocast",
        "gradient_checkpointing",
        "augmentation_policy",
        "compile",
        "balance_labels",
    }
