"""The verbs as functions. Each builds a recipe, unless it is given one, and hands it to the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from convnext_deploy.artifact import create_output_folder
from convnext_deploy.data.sources import BUILT_IN, check_classes
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.inputs import open_weights
from convnext_deploy.opening import (
    name_variant,
    one_start,
    open_artifact,
    open_data_for,
    open_named_data,
    open_optional,
    open_training_data,
    say_notes,
)
from convnext_deploy.options import (
    DEFAULTS,
    DIGITS_FIT,
    DIGITS_QAT_FIT,
    DIGITS_TEACHER_FIT,
    Options,
    create_settings,
    fit_preset,
    model_config,
    override_fit,
    resolve_device,
    resolve_workers,
)
from convnext_deploy.pipeline import RunResult, plan_recipe, run_recipe
from convnext_deploy.recipe import SOURCE, Gate, Recipe, StageEntry
from convnext_deploy.recipe_file import load_recipe
from convnext_deploy.reporting.record import Report, read_report, write_report
from convnext_deploy.stage_config import (
    DistillConfig,
    PTQConfig,
    QATConfig,
    QuantizeConfig,
    TrainConfig,
)
from convnext_deploy.stage_runs import check_names, run_stages


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


def train(
    model: str | None = None,
    *,
    checkpoint: Path | None = None,
    weights: str | None = None,
    options: Options = DEFAULTS,
) -> RunResult:
    """Train a model from scratch, or fine-tune a checkpoint or published weights.

    Args:
        model: variant; None: that of the checkpoint or weights.
        checkpoint: artifact or weights file to start from; a head for other classes than the data's starts fresh.
        weights: likewise, the name of published weights.
        options: see `Options`.
    """
    data = open_training_data(options)
    checkpoint = one_start(checkpoint, weights)
    source = open_optional(checkpoint, model, options)
    model = name_variant(model, source)
    fit = override_fit(fit_preset(data, DIGITS_FIT, source), options)
    stage = StageEntry(
        "model", TrainConfig(model_config(model, options, data, source), fit), SOURCE if source else None
    )
    return run_stages(f"train-{model}", (stage,), options, source, data, checkpoint, "train")


def distill(
    teacher: str | None = None,
    student: str | None = None,
    *,
    teacher_checkpoint: Path | None = None,
    teacher_weights: str | None = None,
    student_weights: str | None = None,
    distill_method: Literal["kd", "teacher-only", "hard-label", "dkd", "feature"] = "kd",
    temperature: float = DistillConfig.temperature,
    distill_loss_weight: float = DistillConfig.distill_loss_weight,
    teacher_cache: bool = False,
    teacher_cache_top_k: int = 0,
    options: Options = DEFAULTS,
) -> RunResult:
    """Train a student with a teacher, which is trained first when no checkpoint of it is given.

    Args:
        teacher: variant; None: that of its checkpoint.
        student: variant; None: that of its weights.
        teacher_checkpoint: artifact or weights file, for the classes of the data.
        teacher_weights: likewise, the name of published weights.
        student_weights: artifact, weights file or name that the student starts from; its head may be for other classes.
        distill_method: what is learned from the teacher; see `DistillConfig`.
        temperature: softens both logits, 0.01 to 100.
        distill_loss_weight: weight of the teacher's loss; the labels get the rest.
        teacher_cache: keep the teacher's predictions on disk, see `DistillConfig`.
        teacher_cache_top_k: of so many classes; 0: of all.
        options: see `Options`.
    """
    data = open_training_data(options)
    teacher_checkpoint = one_start(teacher_checkpoint, teacher_weights)
    source = open_optional(teacher_checkpoint, teacher, options)
    start = open_optional(None if student_weights is None else Path(student_weights), student, options)
    teacher, student = name_variant(teacher, source), name_variant(student, start)
    stages: list[StageEntry] = []
    if source is None:
        options.progress.say(f"no teacher checkpoint was given: training the teacher '{teacher}' first")
        fit = override_fit(fit_preset(data, DIGITS_TEACHER_FIT, None), options)
        stages.append(StageEntry("teacher", TrainConfig(model_config(teacher, options, data, None), fit), None))
    fit = override_fit(fit_preset(data, DIGITS_FIT, start), options)
    config = DistillConfig(
        model=model_config(student, options, data, start, student_weights),
        teacher=SOURCE if source is not None else "teacher",
        fit=fit,
        method=distill_method,
        temperature=temperature,
        distill_loss_weight=distill_loss_weight,
        teacher_cache=teacher_cache,
        teacher_cache_top_k=teacher_cache_top_k,
    )
    stages.append(StageEntry("student", config, None))
    name = f"distill-{teacher}-{student}"
    return run_stages(name, tuple(stages), options, source, data, teacher_checkpoint, "distill")


def quantize(
    checkpoint: Path,
    *,
    target: str = QuantizeConfig.target,
    method: Literal["auto", "ptq", "qat"] = "auto",
    calibration_method: str | None = None,
    time_budget_s: float | None = None,
    model: str | None = None,
    options: Options = DEFAULTS,
) -> RunResult:
    """Quantize an FP32 artifact or checkpoint to INT8 by the cheapest method that loses too little to matter.

    Args:
        checkpoint: artifact folder or file, or the name of published weights.
        target: name in `quantization.scheme.SCHEMES`.
        method: see `QuantizeConfig`.
        calibration_method: quantize once, with this choice of ranges, and do not climb; see `PTQSteps`.
        time_budget_s: seconds, see `QuantizeConfig`.
        model: variant that the checkpoint must hold.
        options: see `Options`; a drop of `max_top1_drop_pp` is allowed.
    """
    source = open_artifact(checkpoint, model, options)
    data = open_data_for(source, options)
    if data is None:
        raise DataError("quantization needs images: give the image folder with --data DIR.")
    drop = QuantizeConfig.max_drop_pp if options.max_top1_drop_pp is None else options.max_top1_drop_pp
    images = options.calibration_images or QuantizeConfig.calibration_images
    config: PTQConfig | QuantizeConfig
    if calibration_method is not None:
        if method == "qat" or time_budget_s is not None:
            raise RecipeError("--calibration-method quantizes once, without --method qat and --time-budget.")
        # the command offers no other names than the config has
        config = PTQConfig(calibration_method=calibration_method, target=target, calibration_images=images)  # type: ignore[arg-type]
    else:
        fit = override_fit(DIGITS_QAT_FIT if data.name == BUILT_IN else QATConfig().fit, options)
        config = QuantizeConfig(
            target=target,
            method=method,
            max_drop_pp=drop,
            calibration_images=images,
            selection_images=options.selection_images or QuantizeConfig.selection_images,
            time_budget_s=time_budget_s,
            fit=fit,
        )
    stage = StageEntry(config.kind, config, SOURCE, Gate(max_top1_drop_pp=drop))
    return run_stages(f"{config.kind}-{source.model.variant}", (stage,), options, source, data, checkpoint, "quantize")


def validate(
    artifact: Path,
    *,
    baseline: Path | None = None,
    model: str | None = None,
    gate_on: Literal["point", "upper"] = "point",
    options: Options = DEFAULTS,
) -> Report:
    """Score an artifact on the validation images, and compare it with a baseline image by image.

    Args:
        artifact: folder or file, or the name of published weights.
        baseline: likewise; None: nothing is compared.
        model: variant that both must hold.
        gate_on: what must be within `options.max_top1_drop_pp`, see `Gate`.
        options: see `Options`.

    Raises: RecipeError: if a gate is given for a drop that is not measured.
    """
    from convnext_deploy.reporting.comparison import compare_artifacts

    if baseline is None and options.max_top1_drop_pp is not None:
        raise RecipeError("--max-drop is about a drop, and there is nothing to compare with; give --baseline ARTIFACT.")
    if gate_on == "upper" and options.max_top1_drop_pp is None:
        raise RecipeError("--gate-on upper needs to know how much may be lost; give --max-drop.")
    paths = {"baseline": baseline, "artifact": Path(artifact)}
    opened = {name: open_artifact(path, model, options) for name, path in paths.items() if path is not None}
    data = open_data_for(opened["artifact"], options)
    if data is None:
        raise DataError("validation needs images: give the image folder with --data DIR.")
    say_notes(data, options.progress)
    if options.out is not None:
        create_output_folder(options.out)
    for name, entry in opened.items():
        check_classes(str(paths[name]), entry, data)
    device, workers = resolve_device(options), resolve_workers(options, data)
    gate = Gate(max_top1_drop_pp=options.max_top1_drop_pp, on=gate_on)
    return compare_artifacts(
        opened,
        gate,
        data,
        options.seed,
        device,
        workers,
        options.progress,
        options.batch_size,
        options.out,
        options.command,
    )


def report(run: Path) -> Report:
    """Read the report of a run and write its views again."""
    found = read_report(Path(run))
    if Path(run).is_dir():
        write_report(found, Path(run))
    return found
