"""Knowledge distillation: a student learns from labels and from frozen teachers that see the same crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifact import Artifact
from convnext_deploy.data.sources import Data, check_classes
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.network import load_network
from convnext_deploy.spec import Preprocess
from convnext_deploy.stage_config import DistillConfig
from convnext_deploy.stages.context import StageContext, fit_network, model_of, start_network, write_torch_artifact
from convnext_deploy.training.feature_distillation import feature_distillation
from convnext_deploy.training.fit import Objective
from convnext_deploy.training.losses import LogitMethod, average_teachers, distillation_loss


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
    teachers = [open_teacher(artifact, preprocess, context.device) for artifact in context.teachers]
    features = (
        feature_distillation(student, [teacher.network for teacher in teachers], context.seed)
        if config.method == "feature"
        else nullcontext()
    )
    with features as loss_of_features:
        objective = distillation_objective(
            student,
            teachers,
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
    student: nn.Module,
    teachers: Sequence[nn.Module],
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
    """Return the loss of a student against frozen teachers on the same batch: `distillation_loss` of their mean prediction.

    Args:
        student: maps images to logits.
        teachers: likewise, at least one; frozen and put into evaluation mode here.
        method: this and the arguments up to `dkd_beta`: see `distillation_loss`.
        temperature: also that at which the teachers are averaged, see `average_teachers`.
        distill_loss_weight: see `distillation_loss`.
        label_smoothing: likewise.
        dkd_alpha: likewise.
        dkd_beta: likewise.
        feature_loss: called after all forward passes; what it returns is added.
        feature_loss_weight: with this weight.
    """
    for teacher in teachers:
        teacher.requires_grad_(False).eval()

    def objective(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = average_teachers([teacher(images) for teacher in teachers], temperature)
        loss = distillation_loss(
            student(images),
            teacher_logits,
            labels,
            method=method,
            temperature=temperature,
            distill_loss_weight=distill_loss_weight,
            label_smoothing=label_smoothing,
            dkd_alpha=dkd_alpha,
            dkd_beta=dkd_beta,
        )
        return loss if feature_loss is None else loss + feature_loss_weight * feature_loss()

    return objective
