"""Knowledge distillation: a student learns from labels and from a frozen teacher that sees the same crops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convnext_deploy.artifact import Artifact
from convnext_deploy.data.sources import Data, check_classes
from convnext_deploy.errors import ArtifactError
from convnext_deploy.network import load_network
from convnext_deploy.recipe import DistillConfig
from convnext_deploy.spec import Preprocess
from convnext_deploy.stages.context import StageContext, fit_network, model_of, start_network, write_torch_artifact
from convnext_deploy.training.fit import Objective
from convnext_deploy.training.losses import distillation_loss


def run(config: DistillConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Train the student; `source` or `context.weights` holds its initial weights if it has any."""
    teacher_artifact = context.teacher
    if teacher_artifact is None:
        raise ArtifactError(f"stage '{context.name}' has no teacher artifact.")
    data = context.open_data()
    start = source or context.weights
    spec, preprocess = model_of(config.model, data, start)
    check_teacher(teacher_artifact, data, spec.in_channels)
    student = start_network(spec, config.fit, start, data.class_names, context)
    teacher = load_network(teacher_artifact).to(context.device)
    objective = distillation_objective(
        student,
        _Renormalized(teacher, preprocess, teacher_artifact.preprocess),
        config.temperature,
        config.distill_loss_weight,
        config.fit.label_smoothing,
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


class _Renormalized(nn.Module):
    """A teacher that is given images under the student's normalization and sees them under its own."""

    def __init__(self, teacher: nn.Module, student: Preprocess, own: Preprocess) -> None:
        super().__init__()
        self.teacher, self.same = teacher, (student.mean, student.std) == (own.mean, own.std)
        device = next(teacher.parameters()).device
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (student.mean, student.std, own.mean, own.std)
        )
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits."""
        return self.teacher(images if self.same else images * self.scale + self.shift)  # type: ignore[no-any-return]


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
    student: nn.Module, teacher: nn.Module, temperature: float, distill_loss_weight: float, label_smoothing: float
) -> Objective:
    """Return the loss of a student against a frozen teacher on the same batch."""
    teacher.requires_grad_(False).eval()

    def objective(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(images)
        return distillation_loss(
            student(images),
            teacher_logits,
            labels,
            temperature=temperature,
            distill_loss_weight=distill_loss_weight,
            label_smoothing=label_smoothing,
        )

    return objective
