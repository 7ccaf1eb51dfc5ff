"""Teachers of a stage: checked, opened whatever they are, and as part of the loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import PredictionsDetails
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.data.agreement import check_classes, check_labels, outputs_for, unless_in_order
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import ArtifactError, DataError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.variants import feature_width
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.foresight import Given
from convnext_deploy.training.load_foreign import load_foreign
from convnext_deploy.training.losses import cosine_loss
from convnext_deploy.training.predictions import PredictionTable
from convnext_deploy.training.step import Objective
from convnext_deploy.training.student_loss import Distillation, distillation_loss
from convnext_deploy.training.teacher import Teacher

TeacherLogits = Callable[[Batch], Tensor | None]
"""Maps a batch to the logits `(N, classes)` of a teacher, or of several averaged; None: they have none. See `average_teachers`."""
Taught = Teacher | PredictionTable
"""A teacher that is open: a network that looks at the images, or what one has said of them."""


class GraphNetwork(nn.Module):
    """An ONNX file as a network, through the runtime that it is for; no gradient flows to it."""

    def __init__(self, run: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images `(N, C, S, S)` to logits `(N, classes)` float32."""
        found = self._run(images.float().contiguous().cpu().numpy())
        return torch.from_numpy(found).to(images.device)


def check_teachers(given: Given, in_channels: int, *, needed: bool, features_alone: bool = False) -> None:
    """Check that the teachers of a stage and its student speak of the same classes and images.

    Args:
        given: to the stage.
        in_channels: of the student.
        needed: there must be one.
        features_alone: see `check_teacher`.

    Raises: DeployError: as `check_teacher`, and if there is none that is needed.
    """
    if needed and not given.teachers:
        raise ArtifactError(f"stage '{given.name}' has no teacher artifact.")
    for teacher in given.teachers:
        if teacher.artifact is not None:
            check_teacher(teacher.artifact, given.need_data(), in_channels, features_alone=features_alone)
        elif teacher.model.in_channels != in_channels:
            raise _other_channels(f"{given.of_stage(teacher)}the teacher {teacher.name}", teacher.model, in_channels)


def check_quantized_teachers(given: Given, student: ModelSpec, *, needed: bool) -> None:
    """Check the teachers of a training under quantization: of a feature extractor they must give the same features.

    Raises: DeployError: as `check_teachers`, and if one gives others.
    """
    extracts = not student.num_classes
    check_teachers(given, student.in_channels, needed=needed, features_alone=extracts)
    for teacher in given.teachers if extracts else ():
        own = teacher.model
        if teacher.format != "torch" or own.output != student.output or feature_width(own) != feature_width(student):
            raise ArtifactError(
                f"{given.of_stage(teacher)}the teacher {teacher.name} does not give the student's {student.output} of "
                f"{feature_width(student)} numbers; leave it out, and the float network teaches."
            )


def check_teacher(teacher: Artifact, data: Data, in_channels: int, *, features_alone: bool = False) -> None:
    """Check that teacher and student speak of the same classes and images.

    Args:
        teacher: the artifact. It may have more classes than the data, if it has a name for each, and those of the data among them.
        data: what the student is trained on.
        in_channels: of the student.
        features_alone: its classes need not be those of the data, because its features teach.

    Raises:
        DataError: if the teacher's classes are not those of the data.
        ArtifactError: if it takes other images, or is in a format that cannot teach.
    """
    if teacher.format in ("tensorrt", "torch-tensorrt"):
        raise ArtifactError(
            f"{teacher.main_file} is a {teacher.format} engine, which cannot teach; take what it was built from."
        )
    what = f"the teacher {teacher.main_file}"
    if not teacher.model.num_classes and not features_alone:
        raise ArtifactError(f"{what} has no classes, and gives features alone: it teaches by the method 'feature'.")
    if not features_alone and teacher.format != "predictions":
        check_labels(what, teacher, data)
    if teacher.model.num_classes == len(data.class_names) or (
        not features_alone and outputs_for(teacher, data) is None
    ):
        try:
            check_classes(what, teacher, data)
        except DataError as error:
            if not features_alone:
                raise DataError(
                    f"{error} One of other classes can teach its features, by the method 'feature'."
                ) from None
    if teacher.format != "predictions" and teacher.model.in_channels != in_channels:
        raise _other_channels(what, teacher.model, in_channels)


def _other_channels(teacher: str, model: ModelSpec, in_channels: int) -> ArtifactError:
    return ArtifactError(
        f"{teacher} takes {model.in_channels} channels, the student {in_channels}; both see the same images."
    )


def same_features(teacher: nn.Module) -> Objective:
    """Return the loss of a feature extractor against the features that a teacher gives, see `cosine_loss`."""

    def objective(student: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            features = teacher(batch.images)
        return cosine_loss(student(batch.images), features)

    return objective


def open_teacher(
    artifact: Artifact, student: Preprocess, context: StageContext, outputs: NDArray[np.int64] | None = None
) -> Teacher:
    """Load a teacher that looks at images, which come under the student's transform.

    Raises: DeployError: as what loads the network.
    """
    outputs = unless_in_order(outputs, artifact.model.num_classes)
    device = context.execution.device
    if artifact.format == "onnx" and context.open_graph is not None:
        network: nn.Module = GraphNetwork(context.open_graph(artifact))
    elif artifact.format == "foreign":
        network = load_foreign(artifact)
    else:
        network = load_network(artifact)
    return Teacher(network.to(device), student, artifact.preprocess, outputs, device)


def open_predictions(
    artifact: Artifact, data: Data, temperature: float, outputs: NDArray[np.int64] | None
) -> PredictionTable:
    """Read the predictions of a file for the training images. Raises: DataError: see `PredictionTable`."""
    content = artifact.details_as(PredictionsDetails).content
    return PredictionTable(artifact.main_file, data, content, temperature, outputs)


def distillation_objective(
    teacher: TeacherLogits,
    by: Distillation,
    feature_loss: Callable[[], Tensor] | None = None,
    feature_loss_weight: float = 0.0,
) -> Objective:
    """Return the loss of a student against a teacher's predictions for the same batch, `distillation_loss`.

    Args:
        teacher: returns the logits `(N, classes)` for a batch, without gradients; where it has none, the labels have all that the
            features leave.
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
