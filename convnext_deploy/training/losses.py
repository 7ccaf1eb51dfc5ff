"""Losses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    distill_loss_weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`(1 - w) * CE(student, labels) + w * T² * KL(teacher || student)`, both distributions softened by T.

    The gradient of the softened term shrinks with 1/T², so T² keeps the balance of the two terms when T changes.

    Args:
        student_logits: `(N, num_classes)`.
        teacher_logits: `(N, num_classes)`, without gradient.
        labels: `(N,)` int64.
        temperature: T > 0; 1 to 4 usual.
        distill_loss_weight: w in [0, 1].
        label_smoothing: of the cross-entropy, in [0, 1).

    Returns: scalar in nats, averaged over N.
    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    hard = F.cross_entropy(student_logits.float(), labels, label_smoothing=label_smoothing)
    return (1 - distill_loss_weight) * hard + distill_loss_weight * soft
