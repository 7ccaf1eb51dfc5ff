"""What a student learns from: labels and a teacher's logits, put together.

Labels are `(N,)` int64, or `(N, num_classes)` floating point as mixup gives them; below 0 where an image has none.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_deploy.config.choices import LogitMethod
from convnext_deploy.training.losses import (
    at_least_float32,
    bce_loss,
    bernoulli_kd_loss,
    dist_loss,
    dkd_loss,
    hard_label_loss,
    kd_loss,
    standardized,
)


@dataclass(frozen=True)
class Distillation:
    """What a student learns from: `(1 - w) * CE(student, labels) + w * loss(student, teacher)`.

    Where some images have no labels, the first term is the mean over those that have some, the second over all, as in Chen et al.
    2020, arXiv 2006.10029, equation 3.

    Attributes:
        method: the second term. `kd`: `kd_loss`; `teacher-only`: the same with w = 1, whatever is given (Beyer et al. 2022,
            "Knowledge distillation: A good teacher is patient and consistent", arXiv 2106.05237); `hard-label`:
            `hard_label_loss`, where w = 0.5 is the paper's; `dkd`: `dkd_loss`, whose paper adds the two terms, which is w = 0.5
            but for a factor of 2; `dist`: `dist_loss`.
        temperature: T, 0.01 to 100; does not count for `hard-label`.
        distill_loss_weight: w in [0, 1].
        label_smoothing: of the cross-entropy with the labels alone, in [0, 1).
        dkd_alpha: weight of the target class in `dkd_loss`.
        dkd_beta: weight of the other classes in `dkd_loss`.
        multi_label: each output is an answer of its own: `bce_loss` is in the place of the cross-entropy, `bernoulli_kd_loss` in
            that of `kd_loss`. There is no `dkd` then.
        positive_weights: of `bce_loss`.
        standardize: the logits of both are standardized over the classes before the second term, see `standardized`.
        labelled_share: of the images of a batch, that have labels; those of the others are below 0.
    """

    method: LogitMethod = "kd"
    temperature: float = 1.0
    distill_loss_weight: float = 0.5
    label_smoothing: float = 0.0
    dkd_alpha: float = 1.0
    dkd_beta: float = 2.0
    multi_label: bool = False
    positive_weights: Tensor | None = None
    standardize: bool = False
    labelled_share: float = 1.0


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, by: Distillation
) -> Tensor:
    """Return the loss of a student, a scalar.

    Args:
        student_logits: `(N, num_classes)`, of any floating-point dtype.
        teacher_logits: `(N, num_classes)`, without gradient; None: the teacher has none, and the labels are all there is.
        labels: `(N,)` int64, or `(N, num_classes)` floating point; if `by.multi_label` as of `bce_loss`.
        by: which loss, and the weights of its terms.
    """
    if by.multi_label:
        return _multi_label_loss(student_logits, teacher_logits, labels, by)
    if teacher_logits is None:
        return _label_loss(student_logits, labels, by)
    own = student_logits
    if by.standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    if by.method == "hard-label":
        soft = hard_label_loss(student_logits, teacher_logits)
    elif by.method == "dkd":
        weights = {"temperature": by.temperature, "alpha": by.dkd_alpha, "beta": by.dkd_beta}
        soft = dkd_loss(student_logits, teacher_logits, _targets(labels, teacher_logits, by), **weights)
    elif by.method == "dist":
        soft = dist_loss(student_logits, teacher_logits, by.temperature)
    else:
        soft = kd_loss(student_logits, teacher_logits, by.temperature)
    if by.method == "teacher-only":
        return soft
    hard = _label_loss(own, labels, by)
    return (1 - by.distill_loss_weight) * hard + by.distill_loss_weight * soft


def _label_loss(logits: Tensor, labels: Tensor, by: Distillation) -> Tensor:
    """Cross-entropy with the labels, the mean over the images that have some, so that the parts of a batch add up to the whole."""
    if by.multi_label:
        return bce_loss(logits, labels, by.label_smoothing, by.positive_weights) / by.labelled_share
    if by.labelled_share == 1:
        return F.cross_entropy(at_least_float32(logits), labels, label_smoothing=by.label_smoothing)
    known = labels >= 0 if labels.ndim == 1 else labels[:, 0] >= 0
    terms = F.cross_entropy(
        at_least_float32(logits), labels.clamp(min=0), label_smoothing=by.label_smoothing, reduction="none"
    )
    return torch.where(known, terms, torch.zeros_like(terms)).mean() / by.labelled_share


def _targets(labels: Tensor, teacher_logits: Tensor, by: Distillation) -> Tensor:
    """Return the target classes of `dkd_loss`; of images without labels the one that the teacher finds most probable."""
    if by.labelled_share == 1:
        return labels
    known, own = (labels >= 0, labels) if labels.ndim == 1 else (labels[:, 0] >= 0, labels.argmax(dim=1))
    return torch.where(known, own, teacher_logits.argmax(dim=1))


def _multi_label_loss(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, by: Distillation
) -> Tensor:
    if teacher_logits is None:
        return _label_loss(student_logits, labels, by)
    if by.method == "hard-label":
        soft = bce_loss(student_logits, (teacher_logits > 0).float())
    else:
        soft = bernoulli_kd_loss(student_logits, teacher_logits, by.temperature)
    if by.method == "teacher-only":
        return soft
    hard = _label_loss(student_logits, labels, by)
    return (1 - by.distill_loss_weight) * hard + by.distill_loss_weight * soft
