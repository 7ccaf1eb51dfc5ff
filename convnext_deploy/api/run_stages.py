"""From the stages that a verb wants to a run of the pipeline."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from convnext_deploy.api.options import EvaluationOptions, ExecutionOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.choices import CHANGE_LIMITS, FeatureOutput, GateOn
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import TEACHER_PREFIX, Gate, Recipe, StageEntry
from convnext_deploy.data.datasets import BUILT_IN, Data
from convnext_deploy.evaluation.limits import check_gates
from convnext_deploy.pipeline.foresee import check_new_run
from convnext_deploy.pipeline.kept import check_rows
from convnext_deploy.pipeline.open_foreign import open_references
from convnext_deploy.pipeline.plan import plan_run_of
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.run_folder import read_earlier
from convnext_deploy.pipeline.run_result import RunResult
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.stages import check_stage
from convnext_deploy.system.execution import Execution, decoding_processes, resolve_device


def create_execution(options: ExecutionOptions, data: Path | str | None) -> Execution:
    """Decide how work is done where the user left it open; `data` says which images there are, None: at most the built-in ones."""
    workers = options.workers
    if workers is None:
        # processes that decode images pay off for files, not for arrays in memory
        workers = 0 if data in (None, BUILT_IN) else decoding_processes()
    cache_dir = None if options.cache_dir is None else Path(options.cache_dir)
    return Execution(resolve_device(options.device or "auto"), workers, options.seed or 0, options.reporter, cache_dir)


def create_settings(
    verb: str,
    name: str,
    out: Path | str | None,
    execution: Execution,
    options: ExecutionOptions,
    speed_check: bool | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
) -> Settings:
    """Decide where and how the recipe `name` of a verb runs; `execution` was made of `options`.

    `choices`: stage → how it trains, and why, in words.

    Raises: BackendUnavailableError: if events or a run of MLflow are asked for and the package that writes them is missing.
    """
    if options.tensorboard:
        from convnext_deploy.training.tensorboard import check_tensorboard

        check_tensorboard()
    if options.mlflow:
        from convnext_deploy.training.mlflow_tracker import check_mlflow

        check_mlflow()
    folder = Path("runs") / name if out is None else Path(out)
    command = options.command or f"convnext_deploy.{verb}(…)  # called from Python"
    return Settings(
        folder,
        execution,
        options.tensorboard or False,
        command,
        speed_check is not False,
        options.measure_again or False,
        options.restart or False,
        options.mlflow or False,
        choices or {},
        options.dry_run or False,
    )


def create_recipe(
    name: str,
    stages: list[StageEntry],
    data: Data | None,
    source: Path | str | None,
    seed: int,
    preprocess: PreprocessSettings = PreprocessSettings(),
    output: FeatureOutput | None = None,
) -> Recipe:
    """Return the recipe of a verb; `source` is what the user named, if the stages start from something, opened as asked for.

    `output`: what is taken of it in the place of its logits.
    """
    asked = PreprocessSettings() if source is None else preprocess
    origin = None if source is None else str(source)
    images = None if data is None else data.name
    unlabelled = None if data is None or data.unlabelled is None else data.unlabelled.name
    return Recipe(
        name, tuple(stages), images, origin, seed, source_preprocess=asked, source_output=output, unlabelled=unlabelled
    )


def create_gate(evaluation: EvaluationOptions, usual_drop_pp: float | None, on: GateOn = "point") -> Gate:
    """Return what a verb's results must reach; `usual_drop_pp` is the drop of top-1 where none was given."""
    drop = evaluation.max_top1_drop_pp
    return Gate(
        usual_drop_pp if drop is None else drop,
        on=on,
        min_speedup=evaluation.min_speedup,
        max_ece_increase_pp=evaluation.max_ece_increase_pp,
        max_class_drop_pp=evaluation.max_class_drop_pp,
    )


def changes_of(evaluation: EvaluationOptions) -> EvaluationOptions:
    """Return what was asked of changes against the baseline, and nothing else."""
    return EvaluationOptions(**{name: getattr(evaluation, name) for name in CHANGE_LIMITS})


def run_stages(
    recipe: Recipe,
    settings: Settings,
    source: Artifact | None,
    data: Data | None,
    teachers: Mapping[str, Artifact] = MappingProxyType({}),
) -> RunResult:
    """Run a recipe whose source and data are open, or say what would be done.

    `teachers`: those beside the source that are open, by their places.
    """
    check_names(recipe)
    check_gates(recipe, multi_label=data is not None and data.multi_label)
    perform = plan_run_of if settings.dry_run else run_recipe
    opened = {TEACHER_PREFIX + place: teacher for place, teacher in teachers.items()}
    return perform(recipe, settings, source, data, {**open_references(recipe, but=opened), **opened})


def check_early(
    recipe: Recipe, settings: Settings, source: Artifact, data: Data, teachers: Mapping[str, Artifact]
) -> None:
    """Check what would end a run before the settings of its stages are searched for, with any that they may get.

    A folder that holds a report is asked alone whether it is of the same run: what of it is up to date depends on the settings.

    Raises: DeployError: the first that would end the run.
    """
    brought = {TEACHER_PREFIX + place: teacher for place, teacher in teachers.items()}
    check_rows(recipe, settings, source, data, brought)
    if read_earlier(settings.out) is None:
        check_new_run(recipe, settings, source, data, {**open_references(recipe, but=brought), **brought})


def check_names(recipe: Recipe) -> None:
    """Resolve every name that a stage would look up later, so that a wrong one costs no training."""
    for stage in recipe.stages:
        check_stage(stage.config)
