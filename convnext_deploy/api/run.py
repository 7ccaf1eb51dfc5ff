"""The verbs as functions. Each builds a recipe, unless it is given one, and hands it to the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convnext_deploy.api.open_inputs import (
    open_artifact,
    open_named_data,
    say_notes,
)
from convnext_deploy.api.options import DEFAULTS, Options, create_settings
from convnext_deploy.api.run_stages import check_names
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.errors import DataError
from convnext_deploy.pipeline.open_artifact import open_weights
from convnext_deploy.pipeline.run import RunResult, plan_recipe, run_recipe


def run(
    recipe: Recipe | Path | str,
    *,
    options: Options = DEFAULTS,
    on_plan: Callable[[list[tuple[StageEntry, bool]]], None] | None = None,
) -> RunResult | None:
    """Run a recipe.

    Args:
        recipe: a recipe or the path of one.
        options: only those of the data, `out`, `device`, `workers` and `progress` count; the rest is the recipe's.
        on_plan: given the stages and whether each would run; then nothing is executed and None is returned.

    Raises: DeployError: if the recipe, its data or a stage fails. A failed gate is no error: see `RunResult.report.passed`.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    name = options.data or loaded.data
    if name is None:
        raise DataError(f"recipe '{loaded.name}' names no data; give an image folder with --data DIR.")
    check_names(loaded)
    source = open_artifact(Path(loaded.source), None, Options(progress=options.progress)) if loaded.source else None
    weights = open_weights(loaded)
    for artifact in weights.values():
        for note in artifact.notes:
            options.progress.say(note)
    data = open_named_data(name, options)
    settings = create_settings(options, loaded.name, data, "run")
    if on_plan is not None:
        on_plan(plan_recipe(loaded, settings.out, source, data, weights))
        return None
    say_notes(data, options.progress)
    return run_recipe(loaded, settings, source, data, weights)
