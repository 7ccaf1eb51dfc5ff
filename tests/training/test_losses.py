"""The distillation losses against computations in NumPy, at their limits, and for any logits."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.config.choices import LogitMethod
from convnext_deploy.training.losses import average_teachers, dkd_loss, kd_loss
from convnext_deploy.training.student_loss import Distillation, distillation_loss

Array = NDArray[np.float64]
METHODS: tuple[LogitMethod, ...] = get_args(LogitMethod)


def example(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(6, 5, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(0, 5, (6,), generator=generator)


def mixed(labels: Tensor) -> Tensor:
    """Return soft labels as mixup makes them: 0.7 of one class and 0.3 of the next."""
    one_hot = F.one_hot(labels, 5)
    return 0.7 * one_hot + 0.3 * one_hot.roll(1, dims=1)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Array = powers / powers.sum(axis=-1, keepdims=True)
    return result


def divergence(p: Array, q: Array) -> float:
    return float(np.sum(p * np.log(p / q)))


def expected_soft(method: str, s: Array, t: Array, targets: Array, temperature: float) -> float:
    """Return a method's second term from its paper, one image after the other; DKD with alpha 1.5 and beta 0.5."""
    if method == "dist":
        p, q = softmax(t / temperature), softmax(s / temperature)
        found = [[np.corrcoef(*rows)[0, 1] for rows in zip(x, y, strict=True)] for x, y in ((p, q), (p.T, q.T))]
        return temperature**2 * sum(1 - float(np.mean(correlations)) for correlations in found)
    total = 0.0
    for student, teacher, row in zip(s, t, targets, strict=True):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        if method == "hard-label":
            total -= np.log(softmax(student)[teacher.argmax()])
        elif method == "dkd":
            target = row.argmax()
            pairs = (np.array([x[target], 1 - x[target]]) for x in (p, q))
            rest = (softmax(np.delete(x, target) / temperature) for x in (teacher, student))
            total += temperature**2 * (1.5 * divergence(*pairs) + 0.5 * divergence(*rest))
        else:
            total += temperature**2 * divergence(p, q)
    return total / len(s)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("soft_labels", [False, True])
def test_distillation_loss_equals_numpy(method: LogitMethod, soft_labels: bool) -> None:
    student, teacher, labels = example()
    s, t = student.double().numpy(), teacher.double().numpy()
    targets = (mixed(labels) if soft_labels else F.one_hot(labels, 5)).double().numpy()
    for case in itertools.product((0.5, 1.0, 4.0), (0.0, 0.3, 1.0), (0.0, 0.1)):
        temperature, weight, smoothing = case
        smoothed = (1 - smoothing) * targets + smoothing / 5
        hard = -np.sum(smoothed * np.log(softmax(s)), axis=1).mean()
        soft = expected_soft(method, s, t, targets, temperature)
        share = 1.0 if method == "teacher-only" else weight
        found = distillation_loss(
            student,
            teacher,
            mixed(labels) if soft_labels else labels,
            Distillation(
                method=method,
                temperature=temperature,
                distill_loss_weight=weight,
                label_smoothing=smoothing,
                dkd_alpha=1.5,
                dkd_beta=0.5,
            ),
        )
        assert found.shape == ()
        assert found.item() == pytest.approx((1 - share) * hard + share * soft, rel=1e-5), case


def test_distillation_loss_follows_the_probabilities_unless_told_otherwise() -> None:
    student, teacher, labels = example()
    found = distillation_loss(student, teacher, labels, Distillation(temperature=2.0, distill_loss_weight=1.0))
    assert torch.equal(found, kd_loss(student, teacher, 2.0))


@pytest.mark.parametrize("method", METHODS)
def test_standardized_logits_differ_in_direction_alone(method: LogitMethod) -> None:
    student, teacher, labels = example()
    by = Distillation(method, 2.0, 1.0, standardize=True)
    expected = distillation_loss(student, teacher, labels, by)
    torch.testing.assert_close(distillation_loss(7 * student + 3, 0.2 * teacher - 5, labels, by), expected)
    scores = [
        (x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True) for x in (student.numpy(), teacher.numpy())
    ]
    one, other = map(torch.from_numpy, scores)
    plain = distillation_loss(one, other, labels, Distillation(method, 2.0, 1.0))
    torch.testing.assert_close(expected, plain)
    hard = distillation_loss(student, teacher, labels, Distillation(method, 2.0, 0.0, standardize=True))
    if method != "teacher-only":
        torch.testing.assert_close(hard, F.cross_entropy(student, labels))
    assert torch.isfinite(distillation_loss(torch.zeros(2, 5), torch.zeros(2, 5), labels[:2], by))


@pytest.mark.parametrize("method", ["kd", "hard-label", "dkd", "dist"])
def test_distillation_loss_is_cross_entropy_when_weight_is_zero(method: LogitMethod) -> None:
    student, teacher, labels = example()
    found = distillation_loss(
        student, teacher, labels, Distillation(method=method, temperature=2.0, distill_loss_weight=0.0)
    )
    torch.testing.assert_close(found, F.cross_entropy(student, labels))


def test_distillation_loss_equals_equation_3_of_deit_when_weight_is_a_half() -> None:
    student, teacher, labels = example()
    found = distillation_loss(
        student, teacher, labels, Distillation(method="hard-label", temperature=9.0, distill_loss_weight=0.5)
    )
    log_p = np.log(softmax(student.double().numpy()))
    rows = np.arange(6)
    both = log_p[rows, labels.numpy()] + log_p[rows, teacher.numpy().argmax(axis=1)]
    assert found.item() == pytest.approx(-both.mean() / 2, rel=1e-6)


def test_teacher_only_does_not_look_at_the_labels() -> None:
    student, teacher, labels = example()
    options: dict[str, Any] = {"method": "teacher-only", "temperature": 2.0, "distill_loss_weight": 0.3}
    first = distillation_loss(student, teacher, labels, Distillation(**options))
    assert torch.equal(
        first, distillation_loss(student, teacher, (labels + 1) % 5, Distillation(label_smoothing=0.1, **options))
    )


@pytest.mark.parametrize("method", ["kd", "dkd"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergences_are_zero_only_when_logits_agree(method: LogitMethod, temperature: float) -> None:
    student, teacher, labels = example()
    options: dict[str, Any] = {"method": method, "temperature": temperature, "distill_loss_weight": 1.0}
    assert distillation_loss(teacher, teacher, labels, Distillation(**options)).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(teacher + 7.0, teacher, labels, Distillation(**options)).item() == pytest.approx(
        0, abs=1e-5
    )
    assert distillation_loss(student, teacher, labels, Distillation(**options)).item() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.0, 50.0])
def test_kd_loss_gradient_is_temperature_times_difference_of_probabilities(temperature: float) -> None:
    student, teacher, _ = example()
    student.requires_grad_()
    kd_loss(student, teacher, temperature).backward()
    difference = softmax(student.detach().double().numpy() / temperature) - softmax(
        teacher.double().numpy() / temperature
    )
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), temperature * difference / 6, rtol=1e-3, atol=1e-6)


def test_kd_loss_tends_to_the_squared_difference_of_centred_logits_when_temperature_grows() -> None:
    student, teacher, _ = (x.double() for x in example(scale=1.0))
    difference = (student - student.mean(dim=1, keepdim=True) - teacher + teacher.mean(dim=1, keepdim=True)).numpy()
    limit = 0.5 * np.mean(difference**2)
    assert kd_loss(student, teacher, 1e4).item() == pytest.approx(limit, rel=1e-3)
    assert kd_loss(student.float(), teacher.float(), 100.0).item() == pytest.approx(limit, rel=2e-2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_loss_is_kd_loss_when_beta_is_what_the_teacher_leaves_to_other_classes(temperature: float) -> None:
    student, teacher, labels = (x.double() if x.is_floating_point() else x for x in example())
    left = 1 - softmax(teacher.numpy() / temperature)
    for row, label in enumerate(labels.tolist()):
        one = slice(row, row + 1)
        found = dkd_loss(
            student[one], teacher[one], labels[one], temperature=temperature, alpha=1.0, beta=left[row, label]
        )
        torch.testing.assert_close(found, kd_loss(student[one], teacher[one], temperature))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("soft_labels", [False, True])
def test_distillation_loss_gradient_equals_differences(method: LogitMethod, soft_labels: bool) -> None:
    student, teacher, labels = example()
    targets = mixed(labels).double() if soft_labels else labels

    def loss(logits: Tensor) -> Tensor:
        return distillation_loss(
            logits,
            teacher.double(),
            targets,
            Distillation(method=method, temperature=2.0, distill_loss_weight=0.4, dkd_alpha=0.7),
        )

    assert torch.autograd.gradcheck(loss, student.double().requires_grad_())


LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(student=LOGITS, teacher=LOGITS, label=st.integers(0, 2), temperature=st.floats(0.01, 100))
@pytest.mark.parametrize("method", METHODS)
def test_distillation_loss_and_its_gradient_are_finite_for_all_logits(
    method: LogitMethod, student: list[float], teacher: list[float], label: int, temperature: float
) -> None:
    logits = torch.tensor([student], requires_grad=True)
    loss = distillation_loss(
        logits,
        torch.tensor([teacher]),
        torch.tensor([label]),
        Distillation(method=method, temperature=temperature, distill_loss_weight=1.0),
    )
    loss.backward()
    # rounding of probabilities and of the logarithms of small ones, times T², is all that may be below zero
    largest = max(map(abs, student + teacher)) / temperature
    assert loss.item() >= -1e-6 * (1 + temperature**2) - torch.finfo().eps * largest * temperature**2
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50), temperature=st.floats(0.5, 10))
@pytest.mark.parametrize("method", METHODS)
def test_distillation_loss_does_not_change_with_a_constant_or_the_order_of_classes(
    method: LogitMethod, seed: int, shift: float, temperature: float
) -> None:
    student, teacher, labels = (x.double() if x.is_floating_point() else x for x in example(seed))
    options: dict[str, Any] = {"method": method, "temperature": temperature, "distill_loss_weight": 0.5}
    first = distillation_loss(student, teacher, labels, Distillation(**options))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    second = distillation_loss(
        student[:, order] + shift, teacher[:, order] - shift, order.argsort()[labels], Distillation(**options)
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("soft_labels", [False, True])
def test_distillation_loss_is_computed_in_float32_when_logits_are_bfloat16(
    method: LogitMethod, soft_labels: bool
) -> None:
    student, teacher, labels = (x.bfloat16() if x.is_floating_point() else x for x in example())
    targets = mixed(labels) if soft_labels else labels
    options: dict[str, Any] = {"method": method, "temperature": 2.0, "distill_loss_weight": 0.5}
    found = distillation_loss(student, teacher, targets, Distillation(**options))
    assert found.dtype == torch.float32
    assert torch.equal(found, distillation_loss(student.float(), teacher.float(), targets, Distillation(**options)))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_average_teachers_gives_the_mean_of_probabilities(count: int, temperature: float) -> None:
    teachers = [example(seed)[1] for seed in range(count)]
    found = average_teachers(teachers, temperature)
    expected = np.mean([softmax(x.double().numpy() / temperature) for x in teachers], axis=0)
    np.testing.assert_allclose(softmax(found.double().numpy() / temperature), expected, rtol=1e-5)


def test_average_teachers_gives_all_teachers_the_same_weight_whatever_the_size_of_their_logits() -> None:
    sure, unsure = torch.tensor([[1000.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    found = softmax(average_teachers([sure, unsure], 1.0).double().numpy())
    rest = np.e / (1 + 2 * np.e) / 2
    np.testing.assert_allclose(found, [[1 - 2 * rest, rest, rest]], rtol=1e-6)
