"""Every choice is written down once: what computes with it knows the same names, and recipe and Python refuse others alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from convnext_deploy.config import choices
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.engine import TensorRTConfig, TorchTensorRTConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.recipe import Gate
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.errors import RecipeError
from convnext_deploy.exporters.tensorrt.bindings import INSTALL
from convnext_deploy.models.checkpoints.key_maps import DIALECTS
from convnext_deploy.quantization.calibration import AUTO
from convnext_deploy.quantization.observers import RANGE_METHODS
from convnext_deploy.quantization.scheme import SCHEMES


def test_choices_are_those_that_the_package_computes_with() -> None:
    assert get_args(choices.Target) == tuple(SCHEMES)
    assert get_args(choices.CalibrationMethod) == (AUTO, *RANGE_METHODS)
    assert get_args(choices.Dialect) == DIALECTS
    assert get_args(choices.Flavor) == tuple(INSTALL)
    assert {*get_args(choices.Target)} == {*get_args(choices.Runtime), "tensorrt-depthwise", "tensorrt-fp8"} - {
        "tensorrt-rtx"
    }
    assert {*get_args(choices.ExportFormat)} == {"onnx", *get_args(choices.Flavor), "torch-tensorrt"}
    assert get_args(choices.DistillMethod) == (*get_args(choices.LogitMethod), "feature")


def test_stage_kinds_name_settings_of_that_kind() -> None:
    assert {kind: stage_config(kind).kind for kind in STAGE_KINDS} == {kind: kind for kind in STAGE_KINDS}


MODEL = 'model = { name = "atto" }'
WRONG: list[tuple[type[Any], dict[str, Any], str, Any, str]] = [
    (PTQConfig, {}, "calibration_method", "min_max", 'kind = "ptq"'),
    (PTQConfig, {}, "target", "tensort", 'kind = "ptq"'),
    (QuantizeConfig, {}, "method", "PTQ", 'kind = "quantize"'),
    (ONNXConfig, {}, "runtime", "", 'kind = "onnx"'),
    (ONNXConfig, {}, "output", 5, 'kind = "onnx"'),
    (TensorRTConfig, {}, "flavor", "rtx", 'kind = "tensorrt"'),
    (TorchTensorRTConfig, {}, "precision", "int8", 'kind = "torch-tensorrt"'),
    (
        DistillConfig,
        {"model": ModelConfig("atto"), "teacher": "source"},
        "method",
        ["kd"],
        f'kind = "distill"\n{MODEL}\nteacher = "source"',
    ),
    (FitConfig, {}, "autocast", "fp8", f'kind = "train"\n{MODEL}\n[stages.fit]'),
    (FitConfig, {}, "augmentation_policy", "rand", f'kind = "train"\n{MODEL}\n[stages.fit]'),
    (ModelConfig, {"name": "atto"}, "head_activation", "silu", 'kind = "train"\n[stages.model]\nname = "atto"'),
    (Gate, {}, "on", "lower", 'kind = "ptq"\n[stages.gate]'),
]
"""Record, its other fields, the wrong value, and the table of a recipe in which that field would stand next."""


@pytest.mark.parametrize(("record", "others", "name", "value", "table"), WRONG, ids=lambda value: str(value)[:30])
def test_recipe_and_python_refuse_a_wrong_choice_with_the_same_text(
    record: type[Any], others: dict[str, Any], name: str, value: object, table: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"^{name} = [^\n]*; ") as of_python:
        record(**others, **{name: value})
    path = tmp_path / "recipe.toml"
    written = json.dumps(value)
    path.write_text(f'name = "r"\nsource = "s"\n[[stages]]\n{table}\n{name} = {written}\n')
    with pytest.raises(RecipeError) as of_recipe:
        load_recipe(path)
    assert str(of_recipe.value).endswith(f": {of_python.value}")
