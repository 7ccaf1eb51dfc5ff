"""Knowledge distillation: a student learns from labels and from a frozen teacher that sees the same crops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.network import load_network
from convnext_deploy.recipe import DistillConfig
from convnext_deploy.stages.context import StageContext, fit_network, model_of, write_torch_artifact
from convnext_deploy.stages.train import start_network
from convnext_deploy.training.fit import Objective
from convnext_deploy.training.losses import distillation_loss


def run(config: DistillConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Train the student; `source` holds its initial weights if it has any."""
    teacher_artifact = context.teacher
    if teacher_artifact is None:
        raise ArtifactError(f"stage '{context.name}' has no teacher artifact.")
    data = context.open_data()
    spec, preprocess = model_of(config.model, data, source)
    check_teacher(teacher_artifact, data.class_names, spec.in_channels)
    student = start_network(spec, config.fit, source, context)
    teacher = load_network(teacher_artifact).to(context.device)
    objective = distillation_objective(
        student, teacher, config.temperature, config.distill_loss_weight, config.fit.label_smoothing
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
        source=source,
    )


def check_teacher(teacher: Artifact, class_names: tuple[str, ...], in_channels: int) -> None:
    """Check that teacher and student speak of the same classes and images.

    Raises: ArtifactError: if they do not.
    """
    if teacher.model.num_classes != len(class_names):
        raise ArtifactError(
            f"the teacher {teacher.main_file} has {teacher.model.num_classes} classes, the data has {len(class_names)}; "
            "use a teacher trained on the same classes."
        )
    if teacher.class_names is not None and teacher.class_names != class_names:
        pair = next((a, b) for a, b in zip(teacher.class_names, class_names, strict=True) if a != b)
        raise ArtifactError(
            f"the teacher {teacher.main_file} has the class '{pair[0]}' where the data has '{pair[1]}'; "
            "use a teacher trained on the same classes."
        )
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
