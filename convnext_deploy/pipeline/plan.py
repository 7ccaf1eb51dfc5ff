"""What a run would do, and what is said of that before it begins: stages, chosen settings, times."""

from collections.abc import Mapping
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.comparisons import with_comparisons
from convnext_deploy.config.recipe import SOURCE, Recipe, StageEntry
from convnext_deploy.data.datasets import Data
from convnext_deploy.pipeline.estimate import tell_estimates
from convnext_deploy.pipeline.foresee import check_run, name_brought
from convnext_deploy.pipeline.ledger import open_ledger
from convnext_deploy.pipeline.run_result import RunResult
from convnext_deploy.pipeline.stage import Settings, cache_key, reusable


def tell_what_follows(
    recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None, weights: Mapping[str, Artifact]
) -> None:
    """Say how the trainings were chosen, and how long they take; see `tell_estimates`."""
    for name, words in settings.choices.items():
        for text in words:
            settings.execution.progress.say(f"{name}: {text}")
    there = {stage.name for stage, runs in plan_recipe(recipe, settings.out, source, data, weights) if not runs}
    brought = {**weights, **({} if source is None else {SOURCE: source})}
    tell_estimates(recipe, there, data, brought, settings.execution, may_ask=not settings.dry_run)


def plan_run_of(
    recipe: Recipe, settings: Settings, source: Artifact | None, data: Data | None, weights: Mapping[str, Artifact]
) -> RunResult:
    """Return what a run would do, and say how; nothing is executed or written.

    Raises: DeployError: what would end one of the stages, as far as it can be known before any work.
    """
    plan = plan_recipe(recipe, settings.out, source, data, weights)
    check_run(recipe, settings, source, data, weights)
    tell_what_follows(recipe, settings, source, data, weights)
    ledger = open_ledger(recipe.name, data, None, seed=recipe.seed, command=settings.command, source=recipe.source)
    return RunResult(ledger.report, (), tuple(plan))


def plan_recipe(
    recipe: Recipe, out: Path, source: Artifact | None, data: Data | None, weights: Mapping[str, Artifact]
) -> list[tuple[StageEntry, bool]]:
    """Return each stage with whether it would run; nothing is executed or written."""
    source, weights = name_brought(source, weights, data)
    recipe = with_comparisons(recipe)
    if data is not None:
        data.contents.keep_in(out / "cache", write=False)
    artifacts = {**weights, **({SOURCE: source} if source is not None else {})}
    plan = []
    for stage in recipe.stages:
        cached = None
        if all(name in artifacts for name in stage.inputs.values()):
            cached = reusable(out / "stages" / stage.name, cache_key(stage, artifacts, data, recipe.seed))
        if cached is not None:
            artifacts[stage.name] = cached
        plan.append((stage, cached is None))
    return plan
