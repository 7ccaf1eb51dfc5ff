"""Features of student and teacher: the loss against NumPy, and what is on the student only while it is trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.errors import RecipeError
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.training.feature_distillation import PROJECTIONS, StageFeatures, feature_distillation, feature_loss
from convnext_deploy.training.optimizer import MovingAverage, create_optimizer
from tests.weights import fill, noise_images

STUDENT, TEACHER, WIDE = (6, 8, 10, 12), (8, 8, 16, 16), (10, 12, 14, 16)


def network(
    dims: tuple[int, ...], seed: int = 0, *, patch_size: int = 2, gradient_checkpointing: bool = False
) -> ConvNeXt:
    depths = (1, 2, 1, 1)
    model = ConvNeXt(depths, dims, num_classes=3, patch_size=patch_size, gradient_checkpointing=gradient_checkpointing)
    fill(model, seed)
    return model


def features_of(model: ConvNeXt, images: Tensor) -> list[Tensor]:
    """Return the features after each model stage, computed without hooks."""
    found, x = [], images
    for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
        x = stage(downsample(x))
        found.append(x)
    return found


def normalized(x: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = x - x.mean(axis=-1, keepdims=True)
    result: NDArray[np.float64] = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return result


def test_feature_loss_equals_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 7, generator=generator) * scale + 1 for scale in (2.0, 30.0))
    expected = np.mean((normalized(student.double().numpy()) - normalized(teacher.double().numpy())) ** 2)
    found = feature_loss(student, teacher)
    assert (found.shape, found.dtype) == ((), torch.float32)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 1e3), shift=st.floats(-100, 100))
def test_feature_loss_is_two_minus_twice_the_correlation(seed: int, scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 9, 16, generator=generator, dtype=torch.float64)
    pairs = zip(student.numpy(), teacher.numpy(), strict=True)
    expected = np.mean([2 - 2 * np.corrcoef(a, b)[0, 1] for a, b in pairs])
    shape = (1, 3, 3, 16)
    found = feature_loss((scale * student + shift).view(shape), teacher.view(shape))
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_feature_loss_gradient_equals_differences_and_leaves_bfloat16() -> None:
    student, teacher = torch.randn(2, 1, 2, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: feature_loss(x, teacher), student.requires_grad_())
    low = student.detach().bfloat16(), teacher.bfloat16()
    assert torch.equal(feature_loss(*low), feature_loss(low[0].float(), low[1].float()))


def test_feature_loss_averages_the_teachers_finer_features() -> None:
    coarse = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    fine = coarse.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    # The triangle of an antialiased reduction to a half covers four places with 1/8, 3/8, 3/8, 1/8; at the border three.
    weights = np.zeros((4, 8))
    for row in range(4):
        for place, weight in zip(range(2 * row - 1, 2 * row + 3), (1, 3, 3, 1), strict=True):
            if 0 <= place < 8:
                weights[row, place] = weight
    weights /= weights.sum(axis=1, keepdims=True)
    resized = np.einsum("ay,bx,nyxc->nabc", weights, weights, fine.double().numpy())
    expected = np.mean((normalized(coarse.double().numpy()) - normalized(resized)) ** 2)
    assert feature_loss(coarse, fine).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


@pytest.mark.parametrize("count", [1, 2])
def test_feature_distillation_compares_projected_features_of_every_stage_and_teacher(count: int) -> None:
    student, teachers = network(STUDENT), [network(TEACHER, 1), network(WIDE, 2, patch_size=4)][:count]
    images = noise_images(3, 32)
    with feature_distillation(student, [StageFeatures(teacher.eval()) for teacher in teachers], seed=3) as loss:
        with torch.no_grad():
            for teacher in teachers:
                teacher(images)
        student(images)
        found = loss()
        projections = copy.deepcopy(getattr(student, PROJECTIONS))
    with torch.no_grad():
        expected = [
            feature_loss(projections[i][k](own), other).item()
            for i, teacher in enumerate(teachers)
            for k, (own, other) in enumerate(
                zip(features_of(student, images), features_of(teacher, images), strict=True)
            )
        ]
    assert len(expected) == 4 * count
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert min(expected) > 0.1


def test_feature_distillation_trains_student_and_projections_and_not_the_teacher() -> None:
    student, teacher = network(STUDENT), network(TEACHER, 1).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    images, losses = noise_images(3, 32, 4), []
    with feature_distillation(student, [StageFeatures(teacher)], seed=3) as loss:
        names = {name for name, _ in student.named_parameters() if name.startswith(PROJECTIONS)}
        assert names == {f"{PROJECTIONS}.0.{k}.{part}" for k in range(4) for part in ("weight", "bias")}
        optimizer = create_optimizer(student, 1e-2, 0.0)
        for _ in range(40):
            with torch.no_grad():
                teacher(images)
            student(images)
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    # all but the layers after the last model stage, which are no features
    assert {name for name, _ in network(STUDENT).named_parameters()} - gradients.keys() == {
        "norm.weight", "norm.bias", "head.weight", "head.bias",
    }  # fmt: skip
    assert gradients.keys() > names
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("fails", [False, True])
def test_feature_distillation_leaves_nothing_behind(fails: bool) -> None:
    student, teacher = network(STUDENT), network(TEACHER, 1).eval()
    keys, state = list(student.state_dict()), torch.get_rng_state()
    try:
        with feature_distillation(student, [StageFeatures(teacher)], seed=3):
            assert len(list(student.state_dict())) == len(keys) + 8
            assert any(module._forward_hooks for module in student.modules())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert list(student.state_dict()) == keys
    assert not any(module._forward_hooks for part in (student, teacher) for module in part.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_feature_distillation_draws_the_projections_from_the_seed() -> None:
    def draw(seed: int) -> Tensor:
        student = network(STUDENT)
        with feature_distillation(student, [StageFeatures(network(TEACHER))], seed):
            return torch.cat([p.detach().flatten() for p in getattr(student, PROJECTIONS).parameters()])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_feature_distillation_keeps_no_features_of_an_evaluation() -> None:
    student, teacher = network(STUDENT), network(TEACHER, 1).eval()
    images = noise_images(3, 32)
    with feature_distillation(student, [StageFeatures(teacher)], seed=3) as loss:
        average = MovingAverage(student, 0.9)
        teacher(images)
        student(images)
        expected = loss()
        teacher(images)
        student(images)
        # a copy of the student has copies of its hooks
        for other in (average.module, student.eval()):
            other(2 * images + 1)
        torch.testing.assert_close(loss(), expected)
        # and none after their use, so that they do not stay in memory beside those of the next batch
        with pytest.raises(KeyError):
            loss()


def test_feature_distillation_refuses_gradient_checkpointing() -> None:
    student = network(STUDENT, gradient_checkpointing=True)
    with (
        pytest.raises(
            RecipeError, match=r"^features cannot be distilled with gradient_checkpointing[^\n]*turn it off\.$"
        ),
        feature_distillation(student, [StageFeatures(network(TEACHER))], seed=0),
    ):
        pass
    assert not hasattr(student, PROJECTIONS)
