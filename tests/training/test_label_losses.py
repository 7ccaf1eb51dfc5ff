"""Losses of multi-label data: against PyTorch, with unknown labels, and where nothing is left to learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convnext_deploy.data.mixup import mixup
from convnext_deploy.training.losses import average_teachers, bce_loss, bernoulli_kd_loss
from convnext_deploy.training.student_loss import Distillation, distillation_loss


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.randint(0, 2, (6, 4), generator=generator)


def test_binary_cross_entropy_is_pytorchs_and_finite_for_any_logit() -> None:
    logits, labels = draw()
    assert bce_loss(logits, labels).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, labels.float()).item()
    )
    smooth = 0.9 * labels.float() + 0.05
    assert bce_loss(logits, labels, 0.1).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, smooth).item()
    )
    weights = torch.tensor([1.0, 2.0, 5.0, 0.5])
    expected = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights)
    assert bce_loss(logits, labels, 0.0, weights).item() == pytest.approx(expected.item())
    assert bce_loss(torch.full((1, 2), 1e4), torch.tensor([[0, 1]])).item() == pytest.approx(5e3)


def test_what_is_unknown_teaches_nothing_also_when_mixed() -> None:
    logits, labels = draw()
    logits.requires_grad_(True)
    labels[0, 1] = labels[3, 2] = -1
    bce_loss(logits, labels).backward()
    assert logits.grad is not None
    assert (logits.grad == 0).nonzero().tolist() == [[0, 1], [3, 2]]
    _, mixed = mixup(torch.zeros(6, 3, 4, 4), labels, 4, 0.75)
    assert (mixed < 0).nonzero().tolist() == [[0, 1], [1, 1], [3, 2], [4, 2]]  # and in the image that it is mixed into
    assert mixed[2, 0] == pytest.approx(0.75 * labels[2, 0].item() + 0.25 * labels[1, 0].item())


def test_a_student_is_taught_each_answer_by_itself() -> None:
    student, labels = draw()
    teacher = student.flip(0) * 2
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert bernoulli_kd_loss(student, teacher, 2.0).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert bernoulli_kd_loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-7)
    by = Distillation("kd", temperature=2.0, distill_loss_weight=0.25, multi_label=True)
    expected = 0.75 * bce_loss(student, labels) + 0.25 * by_hand
    assert distillation_loss(student, teacher, labels, by).item() == pytest.approx(expected.item(), rel=1e-5)
    mean = average_teachers([teacher, student], 1.0, multi_label=True).sigmoid()
    torch.testing.assert_close(mean, (teacher.sigmoid() + student.sigmoid()) / 2)
