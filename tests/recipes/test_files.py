"""Every recipe that comes with the project loads, names known networks, and is listed in the recipes' README."""

from __future__ import annotations

from pathlib import Path

import pytest

from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.quantization.scheme import resolve_scheme

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.rglob("*.toml"))


def test_recipes_are_there() -> None:
    assert {"quickstart.toml", "cifar10.toml"} <= {path.name for path in FILES}
    assert len({path.stem for path in FILES}) == len(FILES), "two recipes would share the folder of their results"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_loads_and_names_only_what_exists(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    for stage in recipe.stages:
        if isinstance(stage.config, TrainConfig | DistillConfig):
            resolve_variant(stage.config.model.name)
        elif isinstance(stage.config, PTQConfig):
            resolve_scheme(stage.config.target)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipe_has_a_line_in_the_readme(path: Path) -> None:
    assert f"`{path.relative_to(FOLDER)}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_quickstart_is_the_whole_path_on_the_digits() -> None:
    recipe = load_recipe(FOLDER / "quickstart.toml")
    kinds = [stage.config.kind for stage in recipe.stages]
    assert kinds == ["train", "distill", "ptq", "qat", "onnx", "onnx", "tensorrt"]
    assert recipe.data == "digits"
    sources = {stage.name: stage.source for stage in recipe.stages}
    assert sources == {
        "teacher": None,
        "student": None,
        "ptq": "student",
        "qat": "ptq",
        "onnx-fp32": "student",
        "onnx-int8": "qat",
        "engine-int8": "onnx-int8",
    }
