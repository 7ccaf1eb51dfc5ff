"""Between two log lines no step copies from the device to the host, or makes the host wait for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.image_sets import ArrayImages
from convnext_deploy.data.loaders import Batch, BatchPlan, TrainingBatches
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import SCHEMES
from convnext_deploy.stages.teachers import TeacherLogits, distillation_objective
from convnext_deploy.training import loss_meter
from convnext_deploy.training.step import Objective
from convnext_deploy.training.student_loss import Distillation
from convnext_deploy.training.teacher import Teacher
from convnext_deploy.training.teacher_cache import TeacherCache, rounded
from tests.shared import heavy_except
from tests.training.device_copies import DEVICE, counting
from tests.training.fake_batches import CLASSES, fit_with, small_network

SIDE, BATCH, STEPS = 32, 4, 5
LINES = [0, 2, 4]
"""The steps whose loss is shown: the first, each time twice as many later, and the last of an epoch."""
EVERYTHING = Augmentation(
    0.5,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    random_erasing_probability=0.5,
    augmentation_policy="randaugment",
    color_jitter=0.2,
)


def batches_of(augmentation: Augmentation, device: str = DEVICE) -> TrainingBatches:
    rng = np.random.default_rng(0)
    count = BATCH * STEPS
    pixels = rng.integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
    images = ArrayImages(pixels, rng.integers(0, CLASSES, count))
    plan = BatchPlan(BATCH, CLASSES, augmentation, seed=1, own_epochs=1)
    return TrainingBatches(images, default_preprocess(SIDE), plan, device=device)


def labels_alone(network: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch.images), batch.labels)


def teacher() -> Teacher:
    own = default_preprocess(SIDE + 8)
    return Teacher(small_network().to(DEVICE), default_preprocess(SIDE), own, np.arange(CLASSES)[::-1].copy(), DEVICE)


def distilled(logits: TeacherLogits, method: str = "kd") -> Objective:
    return distillation_objective(logits, Distillation(method, 2.0, label_smoothing=0.1))  # type: ignore[arg-type]


def cached(folder: Path, top_k: int) -> TeacherCache:
    """Return a cache that holds the predictions for all batches."""

    def compute(batch: Batch) -> Tensor:
        return torch.randn(len(batch), CLASSES)

    options: dict[str, Any] = {"rows": BATCH * STEPS, "classes": CLASSES, "temperature": 2.0, "top_k": top_k}
    cache = TeacherCache(folder, compute=compute, **options)
    for batch in batches_of(Augmentation(), "cpu").epoch(0):
        cache(batch)
    return TeacherCache(folder, compute=lambda _: pytest.fail("the teacher is asked for what is cached"), **options)


def quantized() -> nn.Module:
    network = prepare(small_network().eval(), SCHEMES["onnxruntime"])
    return network.to(DEVICE)


def train(name: str, folder: Path) -> tuple[Objective, Augmentation, dict[str, Any]]:
    """Return what is trained with: the loss, the augmentation and changes of the schedule."""
    one = teacher()
    everything = {"ema_decay": 0.9, "gradient_clip_norm": 1.0, "accumulation_steps": 2, "layer_decay": 0.9}
    cases: dict[str, tuple[Objective, Augmentation, dict[str, Any]]] = {
        "labels": (labels_alone, Augmentation(0.5), {}),
        "everything": (distilled(lambda batch: rounded(one(batch.images), 2.0)), EVERYTHING, everything),
        "dkd": (distilled(lambda batch: one(batch.images), "dkd"), Augmentation(), {}),
        "cached": (distilled(cached(folder / "best", 2)), Augmentation(), {"ema_decay": 0.9}),
        "all cached": (distilled(cached(folder / "all", 0)), Augmentation(), {}),
        "qat": (distilled(lambda batch: one(batch.images)), Augmentation(), {"gradient_clip_norm": 1.0}),
    }
    return cases[name]


NAMES = ("labels", "everything", "dkd", "cached", "all cached", "qat")


@pytest.mark.parametrize("name", heavy_except(("everything",), NAMES))
def test_a_step_copies_nothing_to_the_host(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_meter, "LINE_EVERY_S", 1e9)  # however slow the steps are here
    objective, augmentation, options = train(name, tmp_path)
    network = quantized() if name == "qat" else small_network(drop_path_rate=0.2, head_dropout=0.1).to(DEVICE)
    batches = batches_of(augmentation)
    with counting(monkeypatch) as copies:

        def count(network: nn.Module, batch: Batch) -> Tensor:
            copies.step = batch.first_row // BATCH
            return objective(network, batch)

        fit_with(network, batches, count, epochs=1, **options)
    assert (copies.uploads, [step for step, _ in copies.reads]) == ([], LINES), copies.reads
