"""Distillation of features: after each model stage the student's features are led to the teacher's.

A ConvNeXt is compared after each model stage, a network of another kind by its last map, a file of features by its vectors.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import ArtifactError, RecipeError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.system.random_state import forked_random
from convnext_deploy.training.foreign_network import ForeignNetwork
from convnext_deploy.training.predictions import PredictionTable
from convnext_deploy.training.teacher import Teacher

PROJECTIONS = "feature_projections"
_EPS = 1e-6


def feature_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of features that are normalized over the channels at every place.

    It is 2 - 2r, where r is the correlation of the two over the channels, so it lies in [0, 4] and the scale of a residual
    stream, which grows with the depth and differs from network to network, does not count.

    Args:
        student_features: `(N, H, W, C)`, already projected to the teacher's width.
        teacher_features: `(N, H', W', C)`, without gradient; resized to H and W bilinearly with antialiasing. One vector of an
            image, `(N, 1, 1, C)`, is compared with the mean of the student's.

    Returns: scalar, in float32 (in float64 when given float64).
    Source: the hint loss of FitNets, Romero et al. 2015, arXiv 1412.6550, equation 3; its target is whitened by a LayerNorm
        without parameters as in Wei et al. 2022, arXiv 2205.14141, and here the student's side alike.
    """
    student, teacher = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student_features, teacher_features))
    if teacher.shape[1:3] == (1, 1):
        student = student.mean((1, 2), keepdim=True)
    elif student.shape[1:3] != teacher.shape[1:3]:
        size = list(student.shape[1:3])
        teacher = F.interpolate(teacher.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
        teacher = teacher.permute(0, 2, 3, 1)
    channels = student.shape[-1:]
    return F.mse_loss(F.layer_norm(student, channels, eps=_EPS), F.layer_norm(teacher, channels, eps=_EPS))


def instead(other: str, *, teaches: bool) -> str:
    """Return what to do about a teacher without features: take an `other`, or let its predictions teach if they can."""
    return f"leave the method 'feature' out, and its predictions teach, or take {other}" if teaches else f"take {other}"


class FeatureSource(Protocol):
    """What a teacher gives of its features."""

    def widths(self, student: Sequence[int]) -> dict[int, int]:
        """Return the channels of its features by the model stage of a student that they are compared with.

        Args:
            student: channels after each model stage of the student.
        """

    def take(self) -> Tensor | dict[int, Tensor]:
        """Return its features `(N, H, W, C)` of the last batch, by model stage or those of the last one, and forget them."""

    def close(self) -> None:
        """Leave no trace in the network."""


class StageFeatures:
    """The features of a ConvNeXt after each model stage, which has as many as the student."""

    def __init__(self, network: ConvNeXt, *, in_training: bool = False) -> None:
        self._network = network
        self._handles: list[RemovableHandle] = []
        self._features = _record_features(network, self._handles, in_training=in_training)

    def widths(self, student: Sequence[int]) -> dict[int, int]:
        return dict(enumerate(_widths(self._network)))

    def take(self) -> dict[int, Tensor]:
        found = dict(self._features)
        self._features.clear()
        return found

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class LastMap:
    """The last feature map of a network of another kind, which is compared with that of the student's last model stage.

    `teaches`: the logits of the network do so too, because its classes are those of the data.

    Raises: ArtifactError: if the network gives none.
    """

    def __init__(self, teacher: Teacher, channels: int, *, teaches: bool = True) -> None:
        assert isinstance(teacher.network, ForeignNetwork)  # others tell more
        self._network: ForeignNetwork = teacher.network
        device = teacher.scale.device
        with torch.no_grad():
            self._network(torch.zeros(1, channels, *teacher.size, device=device))
        found = self._network.features
        if found is None:
            raise ArtifactError(
                f"{self._network.what} gives logits alone; {instead('another teacher', teaches=teaches)}."
            )
        self._width = found.shape[-1]

    def widths(self, student: Sequence[int]) -> dict[int, int]:
        return {len(student) - 1: self._width}

    def take(self) -> Tensor:
        features = self._network.features
        assert features is not None  # its forward pass came before
        self._network.features = None
        return features

    def close(self) -> None:
        self._network.features = None


class FileFeatures:
    """The vectors of a file of features, which are compared with the pooled map of the student's last model stage."""

    def __init__(self, table: PredictionTable) -> None:
        self._table, self._found = table, torch.zeros(0)

    def look(self, batch: Batch) -> None:
        """Look a batch up."""
        self._found = self._table(batch)

    def widths(self, student: Sequence[int]) -> dict[int, int]:
        return {len(student) - 1: self._table.vectors.shape[1]}

    def take(self) -> Tensor:
        return self._found[:, None, None]

    def close(self) -> None:
        self._found = torch.zeros(0)


@contextmanager
def feature_distillation(
    student: ConvNeXt, teachers: Sequence[FeatureSource], seed: int
) -> Iterator[Callable[[], Tensor]]:
    """Compare the features of a student in training with those of its teachers, through learned linear projections.

    Within the block the student has a child `feature_projections`, one linear layer from its width to the teacher's for every
    teacher and model stage that is compared, so that whatever trains, moves, averages or stores the student's parameters does so
    with these. At the end of the block the child and all hooks are gone.

    Args:
        student: on its device; its features are kept in training mode only.
        teachers: at least one, on the same device.
        seed: of the projections; the global random state is left as it was.

    Yields: a function that returns `feature_loss` of the last forward passes of all networks, averaged over model stages and
        teachers, and forgets their features.
    Raises: RecipeError: if the student is trained with gradient checkpointing, which keeps no features.
    """
    if student.gradient_checkpointing:
        raise RecipeError("features cannot be distilled with gradient_checkpointing, which drops them; turn it off.")
    own_widths = _widths(student)
    compared = [teacher.widths(own_widths) for teacher in teachers]
    with forked_random(seed=seed):
        projections = nn.ModuleList(_projections(own_widths, widths) for widths in compared)
    student.add_module(PROJECTIONS, projections.to(next(student.parameters()).device))
    own = StageFeatures(student, in_training=True)

    def loss() -> Tensor:
        found, losses = own.take(), []
        for teacher, widths, layers in zip(teachers, compared, projections, strict=True):
            taken = teacher.take()
            features = taken if isinstance(taken, dict) else dict.fromkeys(widths, taken)
            losses += [
                feature_loss(layer(found[stage]), features[stage])
                for stage, layer in zip(widths, list(layers), strict=True)  # type: ignore[call-overload]  # a list of layers
            ]
        return torch.stack(losses).mean()

    try:
        yield loss
    finally:
        for source in (own, *teachers):
            source.close()
        delattr(student, PROJECTIONS)


def _projections(student: Sequence[int], teacher: Mapping[int, int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(student[stage], width, device="cpu") for stage, width in teacher.items())


def _record_features(network: ConvNeXt, handles: list[RemovableHandle], *, in_training: bool) -> dict[int, Tensor]:
    """Return a table that holds the output of each model stage after every forward pass in that mode.

    Between epochs the student, and a moving average of it that is a copy with the same hooks, are evaluated: not recorded.
    """
    features: dict[int, Tensor] = {}

    def keep(module: nn.Module, _: object, output: Tensor, *, index: int) -> None:
        if module.training == in_training:
            features[index] = output

    for index, stage in enumerate(network.stages):
        handles.append(stage.register_forward_hook(functools.partial(keep, index=index)))
    return features


def _widths(network: ConvNeXt) -> list[int]:
    """Return the channels after each model stage."""
    return list(network.dims)
