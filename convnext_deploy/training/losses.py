"""Losses between the logits of a student, those of a teacher and labels.

All are computed in float32 (in float64 when given float64), averaged over the batch and in nats. Labels are `(N,)` int64, or
`(N, num_classes)` floating point with rows that sum to 1, as mixup gives them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_SPREAD = 1e-7  # of equal logits


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over images and places of 1 - cos, in [0, 2], of features `(N, D)` or maps `(N, D, H, W)`."""
    return 1 - F.cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=1).mean()


def bce_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, positive_weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of each label, from logits, so that it is finite for any of them; the mean over images and labels.

    A label that is not known counts as nothing was asked: its term is 0, and the mean is still over all, so that the parts of a
    batch add up to the whole.

    Args:
        logits: `(N, K)`.
        labels: `(N, K)`: 0 to 1, as mixup gives them, or below 0 where that is not known.
        label_smoothing: e in `(1 - e) * label + e / 2`.
        positive_weights: `(K,)`, factors of the terms of images that have the label.
    """
    known = labels >= 0
    targets = labels.clamp(min=0).to(torch.promote_types(logits.dtype, torch.float32))
    targets = (1 - label_smoothing) * targets + label_smoothing / 2
    terms = F.binary_cross_entropy_with_logits(
        at_least_float32(logits), targets, reduction="none", pos_weight=positive_weights
    )
    return torch.where(known, terms, torch.zeros_like(terms)).mean()


def bernoulli_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`T² * KL(teacher || student)` of each answer, yes or no, both softened by T; the mean over images and labels.

    Args as `kd_loss`, of which it is what remains where every class has a softmax of its own, against a logit of 0.
    """
    student, teacher = (at_least_float32(logits) / temperature for logits in (student_logits, teacher_logits))
    yes = teacher.sigmoid()
    terms = yes * (F.logsigmoid(teacher) - F.logsigmoid(student))
    terms = terms + (1 - yes) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return terms.mean() * temperature**2


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`T² * KL(teacher || student)`, both distributions softened by T.

    The gradient of the softened term shrinks with 1/T², so T² keeps its balance with other terms when T changes. When T grows
    the loss tends to half the mean over classes of the squared difference of the logits, each freed of its mean over classes.

    Args:
        student_logits: `(N, num_classes)`.
        teacher_logits: `(N, num_classes)`.
        temperature: T, 0.01 to 100; 1 to 4 usual. Rounding adds about 1e-7 * T² to the value, but not to the gradient.

    Returns: scalar >= 0 up to rounding; 0 where the logits agree up to a constant.
    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    student = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    return _divergence(teacher, student).mean() * temperature**2


def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher finds most probable, which is never smoothed.

    It does not look at the labels: on mixed images it is the one class that the teacher sees in the mixture.

    Args:
        student_logits: `(N, num_classes)`.
        teacher_logits: `(N, num_classes)`.

    Returns: scalar >= 0.
    Source: Touvron et al. 2021, DeiT, arXiv 2012.12877, second term of equation 3 (there with weight 1/2).
    """
    return F.cross_entropy(at_least_float32(student_logits), teacher_logits.argmax(dim=1))


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Decoupled knowledge distillation: `T² * (alpha * TCKD + beta * NCKD)`.

    TCKD is KL(teacher || student) of the two probabilities "target class" and "any other class", NCKD that of the
    distributions over the other classes alone. `kd_loss` is the sum with alpha 1 and beta `1 - teacher's probability of the
    target`, which is small exactly where the teacher is sure.

    Args:
        student_logits: `(N, num_classes)`, at least 2 classes.
        teacher_logits: `(N, num_classes)`.
        labels: `(N,)` int64; of `(N, num_classes)` the most probable class is the target (the first of equal ones), as in the
            experiments of arXiv 2305.15781.
        temperature: T, 0.01 to 100.
        alpha: weight of TCKD, >= 0; 1 in the paper.
        beta: weight of NCKD, >= 0; in the paper 0.5 on ImageNet and up to 8 on CIFAR-100, in arXiv 2305.15781 2 on ImageNet.

    Returns: scalar >= 0 up to rounding.
    Source: Zhao et al. 2022, arXiv 2203.08679, equation 7; T² as in the official code.
    """
    target = (labels.argmax(dim=1) if labels.is_floating_point() else labels)[:, None]
    # the other classes by their place, because a masked logit of -inf would give 0 * inf
    others = torch.arange(student_logits.shape[1] - 1, device=target.device)
    others = others + (others >= target)

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(at_least_float32(logits) / temperature, dim=1)
        rest = log_p.gather(1, others)
        total = rest.logsumexp(dim=1, keepdim=True)  # log(1 - p) without the rounding of 1 - p
        return torch.cat([log_p.gather(1, target), total], dim=1), rest - total

    (student_two, student_rest), (teacher_two, teacher_rest) = split(student_logits), split(teacher_logits)
    both = alpha * _divergence(teacher_two, student_two) + beta * _divergence(teacher_rest, student_rest)
    return both.mean() * temperature**2


def dist_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Distillation of relations: `T² * (inter + intra)`, both 1 minus a correlation of probabilities softened by T.

    `inter` correlates the classes of each image, `intra` the images of each class: the student has to rank like the teacher, and
    not to have its probabilities. Where a batch is divided, among processes or by gradient accumulation, `intra` is that of each
    part.

    Args:
        student_logits: `(N, num_classes)`.
        teacher_logits: `(N, num_classes)`.
        temperature: T, 0.01 to 100; 1 and 4 in the paper.

    Returns: scalar from 0 to 4 T², up to rounding; with one image `intra` is 0.
    Source: Huang et al. 2022, arXiv 2205.10536, equations 6 to 10 with both weights 1; T² as in the official code.
    """
    student, teacher = (
        F.softmax(at_least_float32(logits) / temperature, dim=1) for logits in (student_logits, teacher_logits)
    )
    loss = 1 - _correlation(student, teacher).mean()
    if len(student) > 1:
        loss = loss + 1 - _correlation(student.T, teacher.T).mean()
    return loss * temperature**2


def standardized(logits: Tensor) -> Tensor:
    """Return logits `(N, num_classes)` with mean 0 and standard deviation 1 over the classes.

    A student need not have logits as large as its teacher's, and the temperature means the same for both.

    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", arXiv 2403.01427, algorithm 1.
    """
    logits = at_least_float32(logits)
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (centred.std(dim=1, keepdim=True) + _SMALLEST_SPREAD)


def average_teachers(teacher_logits: Sequence[Tensor], temperature: float, *, multi_label: bool = False) -> Tensor:
    """Return logits whose softmax at T is the mean of the teachers' probabilities at T.

    Probabilities and not logits are averaged: a mean of logits is a geometric mean of the probabilities, in which one teacher
    that excludes a class outvotes all others, and a teacher with larger logits weighs more.

    Args:
        teacher_logits: at least one tensor `(N, num_classes)`; a single one is returned as it is.
        temperature: T, 0.01 to 100, at which the result is then used.
        multi_label: the probabilities are those of each answer by itself.

    Returns: `(N, num_classes)`.
    Source: Hinton et al. 2015, arXiv 1503.02531, section 1: the arithmetic mean of the predictive distributions.
    """
    if len(teacher_logits) == 1:
        return teacher_logits[0]
    if multi_label:
        scaled = torch.stack([at_least_float32(logits) / temperature for logits in teacher_logits])
        return temperature * (F.logsigmoid(scaled).logsumexp(dim=0) - F.logsigmoid(-scaled).logsumexp(dim=0))
    logs = [F.log_softmax(at_least_float32(logits) / temperature, dim=1) for logits in teacher_logits]
    # log(number of teachers) is left out: a constant changes no probability
    return temperature * torch.stack(logs).logsumexp(dim=0)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Return Pearson's correlation of each row, `(N,)`."""
    return F.cosine_similarity(x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True), dim=1, eps=1e-8)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) of each row, `(N,)`, from logarithms of probabilities `(N, K)`."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 when they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
