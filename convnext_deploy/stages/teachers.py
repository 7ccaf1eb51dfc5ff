"""Teachers of a stage: checked, and as part of the loss."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convnext_deploy.data.agreement import check_classes
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import ArtifactError
from convnext_deploy.stages.foresight import Given
from convnext_deploy.training.fit import Objective
from convnext_deploy.training.losses import Distillation, distillation_loss

TeacherLogits = Callable[[Batch], Tensor]
"""Maps a batch to the logits `(N, classes)` of a teacher, or of several averaged; see `average_teachers`."""


def check_teachers(given: Given, in_channels: int, *, needed: bool) -> None:
    """Check that the teachers of a stage and its student speak of the same classes and images.

    Args:
        given: to the stage.
        in_channels: of the student.
        needed: there must be one.

    Raises:
        ArtifactError: if there is none, or one takes other images.
        DataError: if its classes are not those of the data.
    """
    if needed and not given.teachers:
        raise ArtifactError(f"stage '{given.name}' has no teacher artifact.")
    for teacher in given.teachers:
        if teacher.artifact is not None and given.data is not None:
            check_classes(f"the teacher {teacher.name}", teacher.artifact, given.data)
        if teacher.model.in_channels != in_channels:
            raise ArtifactError(
                f"{given.of_stage(teacher)}the teacher {teacher.name} takes {teacher.model.in_channels} channels, the student "
                f"{in_channels}; both see the same images."
            )


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
        loss = distillation_loss(student(batch.images), teacher_logits, batch.labels, by)
        return loss if feature_loss is None else loss + feature_loss_weight * feature_loss()

    return objective
