"""The distillation loss against a computation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.training.losses import distillation_loss


def example(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(6, 5, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(0, 5, (6,), generator=generator)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits)
    result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_distillation_loss_equals_numpy(temperature: float, weight: float, smoothing: float) -> None:
    student, teacher, labels = example()
    s, t = student.double().numpy(), teacher.double().numpy()
    targets = np.full((6, 5), smoothing / 5)
    targets[np.arange(6), labels.numpy()] += 1 - smoothing
    hard = -np.sum(targets * np.log(softmax(s)), axis=1).mean()
    p, q = softmax(t / temperature), softmax(s / temperature)
    soft = np.sum(p * (np.log(p) - np.log(q)), axis=1).mean()
    found = distillation_loss(
        student, teacher, labels, temperature=temperature, distill_loss_weight=weight, label_smoothing=smoothing
    )
    assert found.shape == ()
    assert found.item() == pytest.approx((1 - weight) * hard + weight * temperature**2 * soft, rel=1e-5)


def test_distillation_loss_is_cross_entropy_when_weight_is_zero() -> None:
    student, teacher, labels = example()
    found = distillation_loss(student, teacher, labels, temperature=2.0, distill_loss_weight=0.0)
    torch.testing.assert_close(found, F.cross_entropy(student, labels))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_loss_is_zero_only_when_logits_agree(temperature: float) -> None:
    student, teacher, labels = example()
    options = {"temperature": temperature, "distill_loss_weight": 1.0}
    assert distillation_loss(teacher, teacher, labels, **options).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(teacher + 7.0, teacher, labels, **options).item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(student, teacher, labels, **options).item() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.0, 50.0])
def test_distillation_loss_gradient_is_temperature_times_difference_of_probabilities(temperature: float) -> None:
    student, teacher, labels = example()
    student.requires_grad_()
    distillation_loss(student, teacher, labels, temperature=temperature, distill_loss_weight=1.0).backward()
    difference = softmax(student.detach().double().numpy() / temperature) - softmax(
        teacher.double().numpy() / temperature
    )
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), temperature * difference / 6, rtol=1e-3, atol=1e-6)


def test_distillation_loss_gradient_keeps_its_size_when_temperature_is_high() -> None:
    norms = []
    for temperature in (20.0, 40.0):
        student, teacher, labels = example(scale=1.0)
        student.requires_grad_()
        distillation_loss(student, teacher, labels, temperature=temperature, distill_loss_weight=1.0).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_distillation_loss_is_computed_in_float32_when_logits_are_bfloat16() -> None:
    student, teacher, labels = (x.bfloat16() if x.is_floating_point() else x for x in example())
    options = {"temperature": 2.0, "distill_loss_weight": 0.5}
    found = distillation_loss(student, teacher, labels, **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, distillation_loss(student.float(), teacher.float(), labels, **options))
