"""A teacher sees the student's crops as it was itself trained to see them: at its own size, under its own normalization."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from convnext_deploy.api.convert import convert
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import Batch
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.stages import distill
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.student_loss import Distillation, distillation_loss
from tests.weights import PREPROCESS, write_weights

SPEC = ModelSpec("test_convnext", 3)
# as of weights that were trained on the pairs of images and texts of CLIP
OTHER = dataclasses.replace(PREPROCESS, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
LABELS = torch.tensor([0, 1, 2, 0])


def normalized(pixels: Tensor, found: Preprocess) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (found.mean, found.std))
    return (pixels - mean) / std


def resized(pixels: Tensor, side: int) -> Tensor:
    """Resize as Pillow does, whose bilinear filter is antialiased."""
    planes = [
        [np.asarray(Image.fromarray(plane.numpy()).resize((side, side), Image.Resampling.BILINEAR)) for plane in image]
        for image in pixels
    ]
    return torch.from_numpy(np.array(planes))


@pytest.fixture
def seen(small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the loss of a student against a teacher on given pixels, and the student."""

    def run(teacher: Artifact, pixels: Tensor) -> tuple[float, Artifact, DistillConfig]:
        student = open_input(write_weights(tmp_path / "student.safetensors", SPEC, small_data.class_names, PREPROCESS))
        losses: list[float] = []

        def compute(network: Any, settings: Any, config: Any, context: Any, objective: Any) -> list[dict[str, float]]:
            with torch.no_grad():
                losses.append(objective(network, Batch(normalized(pixels, PREPROCESS), LABELS)).item())
            return []

        monkeypatch.setattr(distill, "fit_network", compute)
        output = tmp_path / "stage"
        output.mkdir()
        context = StageContext(
            "student", output, small_data, Execution(), tmp_path, teachers=(teacher,), weights=student
        )
        config = DistillConfig(ModelConfig("test_convnext", 64), "teacher", FitConfig(epochs=1, drop_path_rate=0.0))
        distill.run(config, None, context)
        return losses[0], student, config

    return run


@pytest.mark.parametrize("dialect", [None, "timm", "huggingface"])
@pytest.mark.parametrize("side", [32, 64, 96])
@pytest.mark.parametrize("preprocess", [PREPROCESS, OTHER], ids=["same", "other"])
def test_distill_shows_the_teacher_images_as_the_teacher_is_evaluated(
    preprocess: Preprocess, side: int, dialect: Any, seen: Any, small_data: Data, tmp_path: Path
) -> None:
    spec = (
        SPEC if dialect != "huggingface" else ModelSpec("convnext_atto", 3)
    )  # it has no activation but the exact GELU
    own = dataclasses.replace(preprocess, image_size=side)
    weights = write_weights(tmp_path / "teacher.safetensors", spec, small_data.class_names, own, seed=1)
    teacher = open_input(weights if dialect is None else convert(weights, dialect, tmp_path / "converted").path)
    assert teacher.preprocess.image_size == side
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, student, config = seen(teacher, pixels)
    with torch.no_grad():
        expected = distillation_loss(
            load_network(student)(normalized(pixels, PREPROCESS)),
            load_network(open_input(weights))(normalized(resized(pixels, side), own)),
            LABELS,
            Distillation(
                temperature=config.temperature,
                distill_loss_weight=config.distill_loss_weight,
                label_smoothing=config.fit.label_smoothing,
            ),
        )
    assert found == pytest.approx(expected.item(), rel=1e-3)
