"""Knowledge distillation: a student learns from labels and from frozen teachers that see the same crops."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifact import Artifact
from convnext_deploy.code_version import of_module
from convnext_deploy.data.loaders import Batch
from convnext_deploy.data.sources import Data, check_classes
from convnext_deploy.distributed import from_first
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.fit_config import Augmentation
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.network import load_network
from convnext_deploy.spec import Preprocess
from convnext_deploy.stage_config import DistillConfig
from convnext_deploy.stages.context import (
    StageContext,
    fit_network,
    model_of,
    plan_seed,
    start_network,
    write_torch_artifact,
)
from convnext_deploy.training.feature_distillation import feature_distillation
from convnext_deploy.training.fit import Objective, autocast_dtype
from convnext_deploy.training.losses import LogitMethod, average_teachers, distillation_loss
from convnext_deploy.training.teacher_cache import TeacherCache

TeacherLogits = Callable[[Batch], Tensor]
"""Maps a batch to the logits `(N, classes)` of a teacher, or of several averaged; see `average_teachers`."""


def run(config: DistillConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Train the student; `source` or `context.weights` holds its initial weights if it has any."""
    if not context.teachers:
        raise ArtifactError(f"stage '{context.name}' has no teacher artifact.")
    data = context.open_data()
    start = source or context.weights
    spec, preprocess = model_of(config.model, data, start)
    for artifact in context.teachers:
        check_teacher(artifact, data, spec.in_channels)
    student = start_network(spec, config.fit, start, data.class_names, context)
    open_all = functools.cache(
        lambda: [open_teacher(artifact, preprocess, context.device) for artifact in context.teachers]
    )
    features = (
        feature_distillation(student, [teacher.network for teacher in open_all()], context.seed)
        if config.method == "feature"
        else nullcontext()
    )

    def predict(images: Tensor) -> Tensor:
        return average_teachers([teacher(images) for teacher in open_all()], config.temperature)

    with features as loss_of_features:
        objective = distillation_objective(
            _cached(predict, config, preprocess, data, context) if config.teacher_cache else _on_images(predict),
            method="kd" if config.method == "feature" else config.method,
            temperature=config.temperature,
            distill_loss_weight=config.distill_loss_weight,
            label_smoothing=config.fit.label_smoothing,
            dkd_alpha=config.dkd_alpha,
            dkd_beta=config.dkd_beta,
            feature_loss=loss_of_features,
            feature_loss_weight=config.feature_loss_weight,
        )
        history = fit_network(student, preprocess, config.fit, context, objective)
    return write_torch_artifact(
        student,
        context,
        model=spec,
        preprocess=preprocess,
        class_names=data.class_names,
        precision="fp32",
        details={"history": history},
        source=start,
    )


def _on_images(predict: Callable[[Tensor], Tensor]) -> TeacherLogits:
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
    autocast = autocast_dtype(fit.autocast, context.device)
    plan = {
        # the same weights may be those of networks that differ in what no weight shows, such as the activation
        "teachers": [
            [teacher.sha256, dataclasses.asdict(teacher.model), dataclasses.asdict(teacher.preprocess)]
            for teacher in context.teachers
        ],
        "images": [data.fingerprint, dataclasses.asdict(preprocess)],
        "augmentation": {name.name: getattr(fit, name.name) for name in dataclasses.fields(Augmentation)},
        "order": [plan_seed(fit, context), min(fit.batch_size, len(data.train))],
        "temperature": config.temperature,
        "top_k": config.teacher_cache_top_k,
        "arithmetic": [context.device, str(autocast)],
        "code": of_module(__name__),
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
    context.progress.say(f"{context.name}: the teacher's predictions are kept in {cache.folder}, {size} when complete")
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


class Teacher(nn.Module):
    """A frozen network that is given a student's images and sees them as it was itself trained to see them.

    Args:
        network: on its device.
        student: transform of the images that are given.
        own: transform that the network belongs to; its image size and normalization count.
    """

    def __init__(self, network: ConvNeXt, student: Preprocess, own: Preprocess) -> None:
        super().__init__()
        self.network, self.image_size = network.requires_grad_(False).eval(), own.image_size
        self.same = (student.mean, student.std) == (own.mean, own.std)
        device = next(network.parameters()).device
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (student.mean, student.std, own.mean, own.std)
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits: the same crop, resized to the network's own size."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return self.network(images if self.same else images * self.scale + self.shift)  # type: ignore[no-any-return]


def open_teacher(artifact: Artifact, student: Preprocess, device: str) -> Teacher:
    """Load a teacher for images under the student's transform; see `load_network` for what it raises."""
    return Teacher(load_network(artifact).to(device), student, artifact.preprocess)


def check_teacher(teacher: Artifact, data: Data, in_channels: int) -> None:
    """Check that teacher and student speak of the same classes and images.

    Raises:
        DataError: if the teacher's classes are not those of the data.
        ArtifactError: if it takes other images.
    """
    check_classes(f"the teacher {teacher.main_file}", teacher, data)
    if teacher.model.in_channels != in_channels:
        raise ArtifactError(
            f"the teacher {teacher.main_file} takes {teacher.model.in_channels} channels, the student {in_channels}; "
            "both see the same images."
        )


def distillation_objective(
    teacher: TeacherLogits,
    *,
    method: LogitMethod = "kd",
    temperature: float,
    distill_loss_weight: float,
    label_smoothing: float,
    dkd_alpha: float = 1.0,
    dkd_beta: float = 2.0,
    feature_loss: Callable[[], Tensor] | None = None,
    feature_loss_weight: float = 0.0,
) -> Objective:
    """Return the loss of a student against a teacher's predictions for the same batch, `distillation_loss`.

    Args:
        teacher: returns the logits `(N, classes)` for a batch, without gradients.
        method: this and the arguments up to `dkd_beta`: see `distillation_loss`.
        temperature: likewise.
        distill_loss_weight: see `distillation_loss`.
        label_smoothing: likewise.
        dkd_alpha: likewise.
        dkd_beta: likewise.
        feature_loss: called after all forward passes; what it returns is added.
        feature_loss_weight: with this weight.
    """

    def objective(student: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(batch)
        loss = distillation_loss(
            student(batch.images),
            teacher_logits,
            batch.labels,
            method=method,
            temperature=temperature,
            distill_loss_weight=distill_loss_weight,
            label_smoothing=label_smoothing,
            dkd_alpha=dkd_alpha,
            dkd_beta=dkd_beta,
        )
        return loss if feature_loss is None else loss + feature_loss_weight * feature_loss()

    return objective
