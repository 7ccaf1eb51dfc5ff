"""A teacher sees the student's crops, under the normalization that it was itself trained with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext_deploy.data.sources import Data
from convnext_deploy.inputs import open_input
from convnext_deploy.network import load_network
from convnext_deploy.progress import SilentProgress
from convnext_deploy.recipe import DistillConfig, FitConfig, ModelConfig
from convnext_deploy.spec import ModelSpec
from convnext_deploy.stages import distill
from convnext_deploy.stages.context import StageContext
from convnext_deploy.training.losses import distillation_loss
from tests.weights import PREPROCESS, write_weights

SPEC = ModelSpec("test_convnext", 3)
# as of weights that were trained on the pairs of images and texts of CLIP
OTHER = dataclasses.replace(PREPROCESS, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


@pytest.mark.parametrize("preprocess", [PREPROCESS, OTHER], ids=["same", "other"])
def test_distill_shows_the_teacher_images_as_the_teacher_is_evaluated(
    preprocess: Any, small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = open_input(
        write_weights(tmp_path / "teacher.safetensors", SPEC, small_data.class_names, preprocess, seed=1)
    )
    student = open_input(write_weights(tmp_path / "student.safetensors", SPEC, small_data.class_names, PREPROCESS))
    seen: dict[str, torch.Tensor] = {}
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def normalized(found: Any) -> torch.Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (found.mean, found.std))
        return (pixels - mean) / std

    def compute(network: Any, settings: Any, config: Any, context: Any, objective: Any) -> list[dict[str, float]]:
        with torch.no_grad():
            seen["loss"] = objective(normalized(PREPROCESS), torch.tensor([0, 1, 2, 0]))
        return []

    monkeypatch.setattr(distill, "fit_network", compute)
    output = tmp_path / "stage"
    output.mkdir()
    context = StageContext(
        "student", output, lambda: small_data, 0, "cpu", 0, SilentProgress(), teacher=teacher, weights=student
    )
    config = DistillConfig(ModelConfig("test_convnext", 64), "teacher", FitConfig(epochs=1, drop_path_rate=0.0))
    distill.run(config, None, context)
    with torch.no_grad():
        expected = distillation_loss(
            load_network(student)(normalized(PREPROCESS)),
            load_network(teacher)(normalized(preprocess)),
            torch.tensor([0, 1, 2, 0]),
            temperature=config.temperature,
            distill_loss_weight=config.distill_loss_weight,
            label_smoothing=config.fit.label_smoothing,
        )
    assert seen["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
