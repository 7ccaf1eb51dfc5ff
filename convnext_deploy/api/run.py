"""`run`: every stage of a recipe, or which of them would run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from convnext_deploy.api.open_inputs import open_artifact, open_named_data, with_features
from convnext_deploy.api.open_teachers import name_teacher
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, verb
from convnext_deploy.api.run_stages import check_names, create_execution, create_settings
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.recipe import SOURCE, TEACHER_PREFIX, WEIGHTS_PREFIX, Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.agreement import with_labels_for
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.evaluation.limits import check_gates
from convnext_deploy.pipeline.estimate import tell_estimates
from convnext_deploy.pipeline.foresee import check_run, weights_to_download
from convnext_deploy.pipeline.open_foreign import open_references, open_teacher_input, teaches_only
from convnext_deploy.pipeline.run import plan_recipe, run_recipe
from convnext_deploy.pipeline.run_result import RunResult
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.system.progress import Progress


@verb
def run(
    recipe: Recipe | Path | str,
    *,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> RunResult:
    """Run a recipe: every stage in order, each artifact validated, what is up to date not repeated.

    Args:
        recipe: a recipe or the path of one.
        out: folder of the run; None: `runs/NAME`.
        data: images, in the place of the recipe's.
        evaluation: whether INT8 is timed; everything else is the recipe's.
        execution: how work is done; the seed is the recipe's.

    Raises: DeployError: if the recipe, its data or a stage fails. For a failed gate `RunResult.report.passed` is false.
    """
    loaded, settings, source, images, weights, _ = _open(recipe, out, data, evaluation, execution)
    return run_recipe(loaded, settings, source, images, weights)


@verb
def plan_run(
    recipe: Recipe | Path | str,
    *,
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> list[tuple[StageEntry, bool]]:
    """Return the stages of a recipe with whether `run`, given the same, would execute each; nothing is executed or written.

    Raises: DeployError: as `run`, also what would end one of the later stages, as far as it can be known before any work.
    """
    loaded, settings, source, images, weights, downloads = _open(recipe, out, data, evaluation, execution, plan=True)
    for name in downloads:
        settings.execution.progress.say(
            f"{name.removeprefix(WEIGHTS_PREFIX)} is not in the cache: the run would download it, which is not tried here"
        )
    plan = plan_recipe(loaded, settings.out, source, images, weights)
    check_run(loaded, settings, source, images, weights, downloads)
    up_to_date = {stage.name for stage, runs in plan if not runs}
    brought = {**weights, **({} if source is None else {SOURCE: source})}
    tell_estimates(loaded, up_to_date, images, brought, settings.execution, may_ask=False)
    return plan


def _open(
    recipe: Recipe | Path | str,
    out: Path | str | None,
    data: DataOptions,
    evaluation: EvaluationOptions,
    execution: ExecutionOptions,
    *,
    plan: bool = False,
) -> tuple[Recipe, Settings, Artifact | None, Data, Mapping[str, Artifact], tuple[str, ...]]:
    """Open what a recipe names; for a plan nothing is downloaded, and what would be comes last."""
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    if data.unlabelled is not None:
        loaded = replace(loaded, unlabelled=str(data.unlabelled))
    name = data.data or loaded.data
    if name is None:
        raise DataError(f"recipe '{loaded.name}' names no data; give an image folder with --data DIR.")
    if evaluation.speed_check and not loaded.speed_check:
        raise RecipeError(f"recipe '{loaded.name}' says speed_check = false, so none is made; change it there.")
    check_names(loaded)
    how = create_execution(execution, name)
    asked = DataOptions(name, classes=data.classes, **loaded.source_preprocess.asked())
    source = _open_source(loaded, asked, how.progress)
    if source is not None and loaded.source_output is not None:
        source = with_features(source, loaded.source_output, str(loaded.source), how.progress)
    downloads = weights_to_download(loaded) if plan else ()
    weights = open_references(loaded, but=downloads)
    for key, artifact in weights.items():
        for note in artifact.notes:
            how.progress.say(note)
        if key.startswith(TEACHER_PREFIX):
            weights[key] = name_teacher(artifact, asked, how.progress)
    images = open_named_data(name, replace(data, unlabelled=loaded.unlabelled), how, out)
    images = images if source is None else with_labels_for(source, images)
    check_gates(loaded, multi_label=images.multi_label)
    settings = create_settings("run", loaded.name, out, how, execution, speed_check=evaluation.speed_check)
    return loaded, settings, source, images, weights, downloads


def _open_source(recipe: Recipe, asked: DataOptions, progress: Progress) -> Artifact | None:
    if recipe.source is None:
        return None
    if teaches_only(recipe):
        source = open_teacher_input(recipe.source, None, asked.preprocess)
        for note in source.notes:
            progress.say(note)
        return name_teacher(source, asked, progress)
    return open_artifact(recipe.source, None, asked, progress)
