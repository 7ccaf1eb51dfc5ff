"""Distillation of features: after each model stage the student's features are led to the teacher's."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convnext_deploy.errors import RecipeError
from convnext_deploy.models.convnext import ConvNeXt

PROJECTIONS = "feature_projections"
_EPS = 1e-6


def feature_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of features that are normalized over the channels at every place.

    It is 2 - 2r, where r is the correlation of the two over the channels, so it lies in [0, 4] and the scale of a residual
    stream, which grows with the depth and differs from network to network, does not count.

    Args:
        student_features: `(N, H, W, C)`, already projected to the teacher's width.
        teacher_features: `(N, H', W', C)`, without gradient; resized to H and W bilinearly with antialiasing.

    Returns: scalar, in float32 (in float64 when given float64).
    Source: the hint loss of FitNets, Romero et al. 2015, arXiv 1412.6550, equation 3; its target is whitened by a LayerNorm
        without parameters as in Wei et al. 2022, arXiv 2205.14141, and here the student's side alike.
    """
    student, teacher = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student_features, teacher_features))
    if student.shape[1:3] != teacher.shape[1:3]:
        size = list(student.shape[1:3])
        teacher = F.interpolate(teacher.permute(0, 3, 1, 2), size=size, mode="bilinear", antialias=True)
        teacher = teacher.permute(0, 2, 3, 1)
    channels = student.shape[-1:]
    return F.mse_loss(F.layer_norm(student, channels, eps=_EPS), F.layer_norm(teacher, channels, eps=_EPS))


@contextmanager
def feature_distillation(student: ConvNeXt, teachers: Sequence[ConvNeXt], seed: int) -> Iterator[Callable[[], Tensor]]:
    """Compare the features of a student in training with those of its teachers, through learned linear projections.

    Within the block the student has a child `feature_projections`, one linear layer from its width to the teacher's for every
    teacher and model stage, so that whatever trains, moves, averages or stores the student's parameters does so with these. At
    the end of the block the child and all hooks are gone.

    Args:
        student: on its device; its features are kept in training mode only.
        teachers: at least one, on the same device; with as many model stages as the student.
        seed: of the projections; the global random state is left as it was.

    Yields: a function that returns `feature_loss` of the last forward passes of all networks, averaged over model stages and
        teachers, and forgets their features.
    Raises: RecipeError: if the student is trained with gradient checkpointing, which keeps no features.
    """
    if student.gradient_checkpointing:
        raise RecipeError("features cannot be distilled with gradient_checkpointing, which drops them; turn it off.")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        projections = nn.ModuleList(_projections(student, teacher) for teacher in teachers)
    student.add_module(PROJECTIONS, projections.to(next(student.parameters()).device))
    handles: list[RemovableHandle] = []
    own = _record_features(student, handles, in_training=True)
    others = [_record_features(teacher, handles, in_training=False) for teacher in teachers]

    def loss() -> Tensor:
        losses = [
            feature_loss(layers[index](own[index]), output)  # type: ignore[index]  # a ModuleList does not know what it holds
            for features, layers in zip(others, projections, strict=True)
            for index, output in features.items()
        ]
        for features in (own, *others):
            features.clear()
        return torch.stack(losses).mean()

    try:
        yield loss
    finally:
        for handle in handles:
            handle.remove()
        delattr(student, PROJECTIONS)


def _projections(student: ConvNeXt, teacher: ConvNeXt) -> nn.ModuleList:
    widths = zip(_widths(student), _widths(teacher), strict=True)
    return nn.ModuleList(nn.Linear(own, other, device="cpu") for own, other in widths)


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
    return [stage[-1].pwconv2.out_features for stage in network.stages]  # type: ignore[index]  # as above
