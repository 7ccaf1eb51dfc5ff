"""The recipe that a report tells: the one that made it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import Report
from tests.reports.conftest import BASELINE_ROW, change, create_report

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))


def report_of(recipe: Recipe) -> Report:
    """Return the report that running a recipe would leave, as far as it tells the recipe."""
    rows = [
        change(
            BASELINE_ROW,
            name=stage.name,
            kind=stage.config.kind,
            config=json.loads(json.dumps(dataclasses.asdict(stage.config))),
            inputs=stage.inputs,
            gate=stage.gate,
        )
        for stage in recipe.stages
    ]
    return create_report(*rows, recipe=recipe.name, seed=recipe.seed, data=recipe.data or "none", source=recipe.source)


def read_back(text: str | None, folder: Path) -> Recipe:
    assert text is not None
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_of_the_project_comes_back(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert read_back(write_recipe(report_of(recipe)), tmp_path) == recipe


def test_recipe_with_odd_names_comes_back(small_recipe: Recipe, tmp_path: Path) -> None:
    odd = dataclasses.replace(small_recipe, name='a "b" \u00e9 # [c]', data="/d/'x'\t", source='s"')
    assert read_back(write_recipe(report_of(odd)), tmp_path) == odd


def test_recipe_is_unknown_where_the_settings_are() -> None:
    assert write_recipe(create_report(BASELINE_ROW)) is None
