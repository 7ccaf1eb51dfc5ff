"""`distill`: train a student with a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from convnext_deploy.api.open_inputs import (
    name_variant,
    one_start,
    open_optional,
    open_training_data,
)
from convnext_deploy.api.options import DEFAULTS, Options
from convnext_deploy.api.run_stages import run_stages
from convnext_deploy.api.training_presets import (
    DIGITS_FIT,
    DIGITS_TEACHER_FIT,
    fit_preset,
    model_config,
    override_fit,
)
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.recipe import SOURCE, StageEntry
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.pipeline.run import RunResult


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
