"""Stages that a recipe does not have, and that show what those are worth which it has."""

from dataclasses import replace

from convnext_deploy.config.recipe import Recipe, StageEntry


def with_comparisons(recipe: Recipe) -> Recipe:
    """Return a recipe with the trainings without teachers that its stages ask for, `NAME-alone`, each before its stage.

    One that the recipe has already, under any name, is not added.

    Raises: RecipeError: if the name is taken.
    """
    stages: list[StageEntry] = []
    for stage in recipe.stages:
        alone = stage.config.alone
        known = ((each.config, each.source) for each in recipe.stages)
        if stage.config.shows_alone and alone is not None and (alone, stage.source) not in known:
            stages.append(StageEntry(f"{stage.name}-alone", alone, stage.source))
        stages.append(stage)
    return recipe if len(stages) == len(recipe.stages) else replace(recipe, stages=tuple(stages))
