"""The teacher's predictions on disk: what is kept, how exactly, and that it is computed once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convnext_deploy.data.loaders import Batch
from convnext_deploy.training.student_loss import Distillation, distillation_loss
from convnext_deploy.training.teacher_cache import TeacherCache

ROUNDING = 2.0**-11  # of half precision, relative
ROWS, CLASSES = 24, 20
FILE = "epoch-0000.bin"
SOME_K = pytest.mark.parametrize("top_k", [0, 1, 5, CLASSES - 1])
TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 4.0])


def draw_logits(rows: int = ROWS, classes: int = CLASSES, scale: float = 5.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def batch_of(logits: Tensor, first: int = 0, epoch: int = 0) -> Batch:
    """Return a batch whose images are the logits that the teacher computes for them."""
    return Batch(logits, torch.zeros(len(logits), dtype=torch.int64), epoch, first)


def open_cache(folder: Path, top_k: int = 0, temperature: float = 1.0, **changes: Any) -> TeacherCache:
    options = {"rows": ROWS, "classes": CLASSES, "compute": lambda batch: batch.images, **changes}
    return TeacherCache(folder, top_k=top_k, temperature=temperature, **options)


def forbidden(images: Tensor) -> Tensor:
    raise AssertionError("the teacher was asked")


def smoothed(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """Return the probabilities that are to be kept, in float64: the k largest, and for each other class its share of the rest."""
    p = np.exp(logits.double().numpy() / temperature)
    p /= p.sum(axis=1, keepdims=True)
    if top_k:
        for row in p:
            others = np.argsort(row)[: len(row) - top_k]
            row[others] = row[others].sum() / len(others)
    return torch.from_numpy(p)


def allowed(p: Tensor) -> Tensor:
    """Return how far rounding may move the logarithms of probabilities: each by a share of itself, all by that of their sum."""
    entropy = -(p * p.log()).sum(1, keepdim=True)
    return 1.01 * ROUNDING * (p.log().abs() + entropy) + 1e-6


@SOME_K
@TEMPERATURES
@pytest.mark.parametrize("scale", [0.5, 5.0, 30.0])
def test_cache_gives_the_kept_probabilities_and_spreads_the_rest(
    top_k: int, temperature: float, scale: float, tmp_path: Path
) -> None:
    logits = draw_logits(scale=scale)
    found = open_cache(tmp_path, top_k, temperature)(batch_of(logits))
    assert (found.dtype, found.shape) == (torch.float32, logits.shape)
    expected = smoothed(logits, temperature, top_k)
    log_p = (found.double() / temperature).log_softmax(1)
    assert ((log_p - expected.log()).abs() <= allowed(expected)).all()
    assert (log_p - expected.log()).abs().max() > 1e-6  # half precision, and no more
    if top_k:
        ranks = logits.argsort(1, descending=True)
        rest = found.gather(1, ranks[:, top_k:])
        assert torch.equal(rest, rest[:, :1].expand_as(rest))
        kept = temperature * (logits / temperature).log_softmax(1).gather(1, ranks[:, :top_k])
        assert torch.equal(found.gather(1, ranks[:, :top_k]), kept.half().float())


@SOME_K
@TEMPERATURES
@pytest.mark.parametrize("method", ["kd", "teacher-only", "hard-label", "dkd"])
def test_loss_with_the_cache_is_that_of_the_kept_probabilities(
    method: Any, temperature: float, top_k: int, tmp_path: Path
) -> None:
    logits, student, labels = draw_logits(), draw_logits(seed=1, scale=2.0), torch.arange(ROWS) % CLASSES
    found = open_cache(tmp_path, top_k, temperature)(batch_of(logits))
    reference = logits if top_k == 0 else temperature * smoothed(logits, temperature, top_k).log()

    def losses(teacher: Tensor) -> tuple[Tensor, Tensor]:
        own = student.double().requires_grad_()
        options: dict[str, Any] = {"method": method, "temperature": temperature, "distill_loss_weight": 1.0}
        loss = distillation_loss(own, teacher.double(), labels, Distillation(**options))
        return loss.detach(), torch.autograd.grad(loss, own)[0]

    (value, gradient), (expected, expected_gradient) = losses(found), losses(reference)
    if method == "hard-label":
        assert torch.equal(gradient, expected_gradient)
    # the loss weighs differences of logarithms, of which the largest probabilities' count
    assert value.item() == pytest.approx(expected.item(), rel=4 * ROUNDING)
    assert ((gradient - expected_gradient).norm() / expected_gradient.norm()).item() < 4 * ROUNDING


@pytest.mark.parametrize("top_k", [0, 1, 3])
@TEMPERATURES
def test_cache_keeps_the_class_of_a_hard_label_where_rounding_makes_several_equal(
    top_k: int, temperature: float, tmp_path: Path
) -> None:
    near = draw_logits(200, seed=2)
    best = near.max(1, keepdim=True).values
    near = torch.where(
        torch.rand(near.shape, generator=torch.Generator().manual_seed(3)) < 0.4, best - 1e-4 * near, near
    )
    for number, logits in enumerate((near, near.bfloat16(), torch.zeros(200, CLASSES), near * 1e-6)):
        cache = open_cache(tmp_path / str(number), top_k, temperature, rows=200)
        found = cache(batch_of(logits))
        assert torch.equal(found.argmax(1), logits.argmax(1))
        # by rank, because it is open which of equal classes are kept; the first one may have moved by one more step
        expected = smoothed(logits.float(), temperature, top_k).sort(1).values
        log_p = (found.double() / temperature).log_softmax(1).sort(1).values
        assert ((log_p - expected.log()).abs() <= 3 * allowed(expected)).all()


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_cache_stays_finite_when_a_teacher_excludes_classes(top_k: int, temperature: float, tmp_path: Path) -> None:
    logits = draw_logits(scale=1e5)
    found = open_cache(tmp_path, top_k, temperature)(batch_of(logits))
    assert found.isfinite().all()
    options: dict[str, Any] = {"temperature": temperature, "distill_loss_weight": 1.0}
    for method in ("kd", "dkd"):
        loss = distillation_loss(draw_logits(), found, logits.argmax(1), Distillation(method=method, **options))
        assert loss.isfinite()


@SOME_K
def test_cache_gives_the_same_bits_whether_computed_or_read(top_k: int, tmp_path: Path) -> None:
    logits = draw_logits()
    first = open_cache(tmp_path, top_k)
    computed, read = first(batch_of(logits)), first(batch_of(logits))
    assert first.computed == ROWS
    second = open_cache(tmp_path, top_k, compute=forbidden)
    assert torch.equal(computed, read)
    assert torch.equal(computed, second(batch_of(logits)))
    assert second.computed == 0
    parts = [second(part) for part in batch_of(logits).chunk(5)]
    assert torch.equal(torch.cat(parts), computed)


def test_cache_is_filled_in_any_order_and_by_anyone(tmp_path: Path) -> None:
    logits = draw_logits()
    expected = open_cache(tmp_path / "whole")(batch_of(logits))
    for first in (16, 0, 8):  # the last rows first: those before them are a hole until they come
        cache = open_cache(tmp_path / "parts")
        cache(batch_of(logits[first : first + 8], first))
        assert cache.computed == 8
    assert (tmp_path / "parts" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert torch.equal(open_cache(tmp_path / "parts", compute=forbidden)(batch_of(logits)), expected)


def test_cache_computes_a_batch_of_which_a_part_is_there(tmp_path: Path) -> None:
    logits = draw_logits()
    open_cache(tmp_path)(batch_of(logits[:10]))
    cache = open_cache(tmp_path)
    cache(batch_of(logits))
    assert cache.computed == ROWS


def test_cache_keeps_epochs_apart(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    found = [cache(batch_of(draw_logits(seed=epoch), epoch=epoch)) for epoch in range(3)]
    assert cache.computed == 3 * ROWS
    again = open_cache(tmp_path, compute=forbidden)
    for epoch in (2, 0, 1):
        assert torch.equal(again(batch_of(draw_logits(seed=epoch), epoch=epoch)), found[epoch])


@pytest.mark.parametrize(("classes", "index_bytes"), [(1 << 16, 2), ((1 << 16) + 1, 4), (70_000, 4)])
def test_cache_tells_many_classes_apart(classes: int, index_bytes: int, tmp_path: Path) -> None:
    logits = torch.zeros(3, classes)
    best = torch.tensor([0, classes // 2, classes - 1])
    logits[torch.arange(3), best], logits[torch.arange(3), best - 1] = 30.0, 20.0
    cache = open_cache(tmp_path, 2, classes=classes, rows=3)
    assert cache.size_bytes(1) == 3 * (3 * 2 + 2 * index_bytes + 4)
    found = cache(batch_of(logits))
    order = found.argsort(1, descending=True)
    assert order[:, :2].tolist() == [[b, (b - 1) % classes] for b in best.tolist()]
    log_p = found.double().log_softmax(1)
    expected = logits.double().log_softmax(1)
    torch.testing.assert_close(log_p, expected, rtol=1.01 * ROUNDING, atol=1e-5)


@pytest.mark.parametrize("top_k", [CLASSES, CLASSES + 1, 10**9])
def test_cache_keeps_all_classes_when_so_many_are_asked_for(top_k: int, tmp_path: Path) -> None:
    logits = draw_logits()
    for name, number in (("all", 0), ("top", top_k)):
        open_cache(tmp_path / name, number)(batch_of(logits))
    assert (tmp_path / "top" / FILE).read_bytes() == (tmp_path / "all" / FILE).read_bytes()


@pytest.mark.parametrize("top_k", [0, 7])
def test_cache_knows_its_size_and_what_is_missing(top_k: int, tmp_path: Path) -> None:
    cache = open_cache(tmp_path, top_k, rows=64, classes=4000 if top_k == 0 else CLASSES)
    logits = draw_logits(64, cache.classes)
    row = 4000 * 2 + 4 if top_k == 0 else 8 * 2 + 7 * 2 + 4
    assert cache.size_bytes(3) == cache.missing_bytes(3) == 3 * 64 * row
    if top_k == 0:
        cache(batch_of(logits[32:], 32))  # after a hole as large
        assert (tmp_path / FILE).stat().st_size == 64 * row
        assert math.isclose(cache.missing_bytes(1), 32 * row, rel_tol=0.05)
        cache(batch_of(logits[:32]))
    else:
        cache(batch_of(logits))
    assert cache.missing_bytes(1) == 0
    assert cache.missing_bytes(3) == 2 * 64 * row
