"""From the stages that a verb wants to a run of the pipeline."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.data.datasets import Data
from convnext_deploy.pipeline.open_artifact import open_weights
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.stages import check_stage


def create_recipe(
    name: str, stages: list[StageEntry], data: Data | None, source: Path | str | None, seed: int
) -> Recipe:
    """Return the recipe of a verb; `source` is what the user named, if the stages start from something."""
    return Recipe(
        name=name,
        stages=tuple(stages),
        data=None if data is None else data.name,
        source=None if source is None else str(source),
        seed=seed,
    )


def run_stages(recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None) -> RunResult:
    """Run a recipe whose source and data are open."""
    check_names(recipe)
    return run_recipe(recipe, settings, source, data, open_weights(recipe))


def check_names(recipe: Recipe) -> None:
    """Resolve every name that a stage would look up later, so that a wrong one costs no training."""
    for stage in recipe.stages:
        check_stage(stage.config)
