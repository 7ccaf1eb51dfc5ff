"""Teachers of a stage: checked, and as part of the loss."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import DistillMethod
from convnext_deploy.data.agreement import check_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.variants import feature_width
from convnext_deploy.training.fit import Objective
from convnext_deploy.training.losses import Distillation, cosine_loss, distillation_loss

TeacherLogits = Callable[[Batch], Tensor | None]
"""Maps a batch to the logits `(N, classes)` of a teacher, or of several averaged, see `average_teachers`; None without a head."""


def check_teacher(teacher: Artifact, data: Data, student: ModelSpec, method: DistillMethod = "kd") -> None:
    """Check that teacher and student speak of the same classes and images.

    A teacher without head can teach its features alone: to a student that gives as many, or, with the method `feature`, those
    after each model stage.

    Raises:
        DataError: if the teacher's classes are not those of the data.
        ArtifactError: if it takes other images, or does not give what the student learns.
    """
    own, in_channels = teacher.model, student.in_channels
    same_width = not own.num_classes and feature_width(own) == feature_width(student)
    if not student.num_classes and (own.output != student.output or not same_width):
        raise ArtifactError(
            f"the teacher {teacher.main_file} gives {own.output} {feature_width(own) if not own.num_classes else own.num_classes}, "
            f"the student {student.output} {feature_width(student)}; they must be the same."
        )
    if student.num_classes and not own.num_classes and method != "feature":
        raise ArtifactError(
            f"the teacher {teacher.main_file} has no head, and so no classes to teach; learn its features with "
            "--distill-method feature."
        )
    check_classes(f"the teacher {teacher.main_file}", teacher, data)
    if teacher.model.in_channels != in_channels:
        raise ArtifactError(
            f"the teacher {teacher.main_file} takes {teacher.model.in_channels} channels, the student {in_channels}; "
            "both see the same images."
        )


def same_features(teacher: nn.Module) -> Objective:
    """Return the loss of a feature extractor against the features that a teacher gives, see `cosine_loss`."""

    def objective(student: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            features = teacher(batch.images)
        return cosine_loss(student(batch.images), features)

    return objective


def distillation_objective(
    teacher: TeacherLogits,
    by: Distillation,
    feature_loss: Callable[[], Tensor] | None = None,
    feature_loss_weight: float = 0.0,
) -> Objective:
    """Return the loss of a student against a teacher's predictions for the same batch, `distillation_loss`.

    Args:
        teacher: returns the logits `(N, classes)` for a batch, without gradients.
        by: which loss, and the weights of its terms.
        feature_loss: called after all forward passes; what it returns is added.
        feature_loss_weight: with this weight.
    """

    def objective(student: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(batch)
        logits = student(batch.images)
        if teacher_logits is None:  # the labels alone tell classes
            loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=by.label_smoothing)
        else:
            loss = distillation_loss(logits, teacher_logits, batch.labels, by)
        return loss if feature_loss is None else loss + feature_loss_weight * feature_loss()

    return objective
