"""Teachers of a stage: checked, opened whatever they are, and as part of the loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import ForeignDetails, Format, PredictionsDetails
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.data.agreement import check_classes, check_labels, check_takes_images, outputs_for, unless_in_order
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import ArtifactError, DataError, RecipeError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.variants import feature_width
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.foresight import Given, Outlook
from convnext_deploy.training.feature_distillation import instead
from convnext_deploy.training.load_foreign import load_foreign
from convnext_deploy.training.losses import cosine_loss
from convnext_deploy.training.prediction_files import read_names
from convnext_deploy.training.predictions import PredictionTable, check_shares, find_rows
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
        gives = f"{what} has no classes, and gives features alone"
        able = _gives_features(teacher.format, teacher)
        raise ArtifactError(
            f"{gives}: it teaches by the method 'feature'." if able else f"{gives}. {_by_features(teacher)}"
        )
    if not features_alone and teacher.format != "predictions":
        check_labels(what, teacher, data)
    own, wanted = teacher.model.num_classes, len(data.class_names)
    if own != wanted and not features_alone:
        outputs = outputs_for(teacher, data)
        if outputs is None:
            check_takes_images(what, teacher)
            raise DataError(f"{what} has {own} classes, {data.name} has {wanted}. {_by_features(teacher)}")
        if teacher.format == "predictions":
            check_shares(teacher.main_file, data, outputs)
    if own == wanted:
        try:
            check_classes(what, teacher, data)
        except DataError as error:
            if not features_alone:
                raise DataError(f"{error} {_by_features(teacher)}") from None
    if teacher.format != "predictions" and teacher.model.in_channels != in_channels:
        raise _other_channels(what, teacher.model, in_channels)


def check_features(given: Given) -> None:
    """Check that each teacher of a stage has features that can be had. Raises: ArtifactError: if one is a graph, or a program."""
    for teacher in given.teachers:
        if not _gives_features(teacher.format, teacher.artifact):
            fits = teacher.artifact is None or outputs_for(teacher.artifact, given.need_data()) is not None
            raise no_features(f"{given.of_stage(teacher)}the teacher {teacher.name}", teacher, fits=fits)


def no_features(what: str, teacher: Outlook, *, fits: bool) -> ArtifactError:
    """Return the error of a teacher whose features cannot be had; `fits`: its classes are those of the data."""
    own = teacher.model
    advice = instead("the network that it was made of", teaches=bool(own.num_classes) and fits)
    form = _form(teacher.format, teacher.artifact)
    return ArtifactError(f"{what} is {form}, which gives {own.output} alone; {advice}.")


def check_multi_label(config: DistillConfig, given: Given) -> None:
    """Check that no setting and no teacher is about one class an image if the data is multi-label. Raises: RecipeError."""
    data = given.need_data()
    for teacher in given.teachers:
        if data.multi_label and teacher.format == "predictions":
            raise RecipeError(
                f"the predictions in {teacher.name} are probabilities of classes that sum to 1, and {data.name} is "
                "multi-label; distill from the network that made them."
            )
    if data.multi_label and (config.method in ("dkd", "dist") or config.standardize_logits):
        setting = "standardize_logits" if config.standardize_logits else f"method = '{config.method}'"
        raise RecipeError(
            f"{setting} is about the one class of an image, and {data.name} is multi-label; use method = 'kd' alone."
        )
    if data.multi_label and config.teacher_cache:
        raise RecipeError(
            f"teacher_cache keeps probabilities of classes that sum to 1, and {data.name} is multi-label; leave it out."
        )


def check_rows(given: Given, images: Data) -> None:
    """Check that files of predictions among the teachers of a stage have a vector for each training image; none is opened.

    Raises: DataError: see `PredictionTable`.
    """
    for teacher in given.teachers:
        if teacher.artifact is not None and teacher.format == "predictions":
            file = teacher.artifact.main_file
            find_rows(read_names(file), images, file)


def _by_features(teacher: Artifact) -> str:
    """Return in words how a teacher of other classes can teach."""
    if _gives_features(teacher.format, teacher):
        return "One of other classes can teach its features, by the method 'feature'."
    return (
        f"The features in {_form(teacher.format, teacher)} do not teach; take the network that it was made of, which can teach its "
        "features by the method 'feature'."
    )


def _gives_features(form: Format, teacher: Artifact | None) -> bool:
    """Whether a teacher in a format has features besides its output, or none but features; the artifact may not be there yet."""
    return form in ("torch", "predictions") or (form == "foreign" and not _is_program(teacher))


def _is_program(teacher: Artifact | None) -> bool:
    return (
        teacher is not None
        and teacher.format == "foreign"
        and teacher.details_as(ForeignDetails).library == "torch.export"
    )


def _form(form: Format, teacher: Artifact | None) -> str:
    return "a program of torch.export" if _is_program(teacher) else "an ONNX file" if form == "onnx" else form


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
