"""From the stages that a verb wants to a run of the pipeline."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.api.open_inputs import say_notes
from convnext_deploy.api.options import Options, create_settings
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.data.datasets import Data
from convnext_deploy.pipeline.open_artifact import open_weights
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.stages import check_stage


def run_stages(
    name: str,
    stages: tuple[StageEntry, ...],
    options: Options,
    source: Artifact | None,
    data: Data | None,
    source_path: Path | None,
    function: str | None = None,
) -> RunResult:
    """Run stages in order; `source_path` is where `source` was opened from, `function` the verb that was called."""
    recipe = Recipe(
        name=name,
        stages=stages,
        data=None if data is None else data.name,
        source=None if source_path is None else str(source_path),
        seed=options.seed,
    )
    check_names(recipe)
    if data is not None:
        say_notes(data, options.progress)
    return run_recipe(recipe, create_settings(options, name, data, function), source, data, open_weights(recipe))


def check_names(recipe: Recipe) -> None:
    """Resolve every name that a stage would look up later, so that a wrong one costs no training."""
    for stage in recipe.stages:
        check_stage(stage.config)
