"""Values within the ranges survive a recipe file exactly; values outside are refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.errors import RecipeError
from convnext_deploy.recipe import FitConfig, ModelConfig, TrainConfig
from convnext_deploy.recipe_file import load_recipe


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
    autocast=st.sampled_from(["auto", "off", "bf16"]),
    gradient_checkpointing=st.booleans(),
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
    weights=st.none() | TEXTS,
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
}


def as_toml(value: object) -> str:
    """Write a string, number or truth value as TOML reads it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_recipe(path: Path, model: ModelConfig, fit: dict[str, object]) -> Path:
    lines = ['name = "r"', "[[stages]]", 'kind = "train"', "[stages.model]"]
    given = {key: value for key, value in dataclasses.asdict(model).items() if value is not None}  # TOML has no null
    lines += [f"{key} = {as_toml(value)}" for key, value in given.items()]
    lines += ["[stages.fit]", *(f"{key} = {as_toml(value)}" for key, value in fit.items())]
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
    assert set(OUTSIDE) == names - {"autocast", "gradient_checkpointing"}
