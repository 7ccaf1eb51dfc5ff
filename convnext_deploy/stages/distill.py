"""Knowledge distillation: a student learns from labels and from frozen teachers that see the same crops."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.agreement import outputs_of_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.teachers import TeacherLogits, check_teacher, distillation_objective
from convnext_deploy.stages.training_setup import fit_network, model_of, plan_seed, start_network
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.distributed import from_first
from convnext_deploy.training.feature_distillation import feature_distillation
from convnext_deploy.training.losses import Distillation, average_teachers
from convnext_deploy.training.schedule import autocast_dtype
from convnext_deploy.training.teacher import open_teacher
from convnext_deploy.training.teacher_cache import RESULT_VERSION, TeacherCache


def check(config: DistillConfig) -> None:
    """Raises: RecipeError: if there is no such network."""
    resolve_variant(config.model.name)


def run(config: DistillConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Train the student; `source` or `context.weights` holds its initial weights if it has any."""
    if not context.teachers:
        raise ArtifactError(f"stage '{context.name}' has no teacher artifact.")
    data = context.need_data()
    start = source or context.weights
    spec, preprocess = model_of(config.model, data, start)
    for artifact in context.teachers:
        check_teacher(artifact, data, spec, config.method)
    student = start_network(spec, config.fit, start, context)
    open_all = functools.cache(
        lambda: [
            open_teacher(artifact, preprocess, context.execution.device, outputs_of_classes(artifact, data))
            for artifact in context.teachers
        ]
    )
    features = (
        feature_distillation(student, [teacher.network for teacher in open_all()], context.execution.seed)
        if config.method == "feature"
        else nullcontext()
    )

    def predict(images: Tensor) -> Tensor | None:
        given = zip(context.teachers, [teacher(images) for teacher in open_all()], strict=True)
        logits = [found for artifact, found in given if artifact.model.num_classes]
        return average_teachers(logits, config.temperature) if logits else None

    def logits_of(images: Tensor) -> Tensor:
        found = predict(images)
        assert found is not None  # the cache is not for teachers of features
        return found

    with features as loss_of_features:
        objective = distillation_objective(
            _cached(logits_of, config, preprocess, data, context) if config.teacher_cache else _on_images(predict),
            _distillation(config),
            loss_of_features,
            config.feature_loss_weight,
        )
        history = fit_network(student, preprocess, config.fit, context, objective)
    return write_torch_artifact(
        student,
        context,
        model=spec,
        preprocess=preprocess,
        class_names=data.class_names,
        precision="fp32",
        details=TorchDetails(history=history),
        source=start,
    )


def _distillation(config: DistillConfig) -> Distillation:
    return Distillation(
        method="kd" if config.method == "feature" else config.method,
        temperature=config.temperature,
        distill_loss_weight=config.distill_loss_weight,
        label_smoothing=config.fit.label_smoothing,
        dkd_alpha=config.dkd_alpha,
        dkd_beta=config.dkd_beta,
    )


def _on_images(predict: Callable[[Tensor], Tensor | None]) -> TeacherLogits:
    return lambda batch: predict(batch.images)


def _cached(
    predict: Callable[[Tensor], Tensor],
    config: DistillConfig,
    preprocess: Preprocess,
    data: Data,
    context: StageContext,
) -> TeacherLogits:
    """Return the teachers' predictions from the cache of the plan of crops, which is shared by all students of that plan."""
    fit = config.fit
    autocast = autocast_dtype(fit.autocast, context.execution.device)
    plan = {
        # the same weights may be those of networks that differ in what no weight shows, such as the activation
        "teachers": [
            [
                teacher.sha256,
                dataclasses.asdict(teacher.model),
                teacher.preprocess.settings(),
                *(outputs.tolist() if (outputs := outputs_of_classes(teacher, data)) is not None else ()),
            ]
            for teacher in context.teachers
        ],
        "images": [data.fingerprint, preprocess.settings()],
        "augmentation": {name.name: getattr(fit, name.name) for name in dataclasses.fields(Augmentation)},
        "order": [plan_seed(fit, context), min(fit.batch_size, len(data.train))],
        "temperature": config.temperature,
        "top_k": config.teacher_cache_top_k,
        "arithmetic": [context.execution.device, str(autocast)],
        "version": RESULT_VERSION,
    }
    key = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    batch_size = min(fit.batch_size, len(data.train))
    cache = TeacherCache(
        context.cache_dir / "teachers" / key[:32],
        rows=len(data.train) // batch_size * batch_size,
        classes=len(data.class_names),
        temperature=config.temperature,
        top_k=config.teacher_cache_top_k,
        compute=predict,
    )
    epochs = min(fit.augmentation_epochs or fit.epochs, fit.epochs)
    size = _in_words(cache.size_bytes(epochs))
    context.execution.progress.say(
        f"{context.name}: the teacher's predictions are kept in {cache.folder}, {size} when complete"
    )
    from_first(lambda: _check_space(cache.folder, cache.missing_bytes(epochs)))
    return cache


def _check_space(folder: Path, missing: int) -> None:
    """Check that the teachers' predictions fit on the disk. Raises: OutputError: if not."""
    disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(disk).free
    if missing > free:
        raise OutputError(
            f"the teacher's predictions need {_in_words(missing)} in {folder}, where {_in_words(free)} are free; "
            "set teacher_cache_top_k or augmentation_epochs, or choose another folder with --cache-dir."
        )


def _in_words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
