"""A distillation stage with the teacher's predictions on disk, and how often its teachers were asked."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import History
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint
from convnext_deploy.stages import distill, teachers
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import Progress, SilentProgress
from convnext_deploy.training.checkpoint_store import TrainingStore
from convnext_deploy.training.teacher import Teacher
from tests.details import torch_details
from tests.stages.test_distill import MODEL, QUICK, STUDENT, TEACHER, write

FIT = dataclasses.replace(QUICK, epochs=3, batch_size=12, drop_path_rate=0.3, augmentation_seed=5)
ROWS = 36  # images of an epoch
Train = Callable[..., tuple[dict[str, Tensor], History]]


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Artifact]:
    """Two teachers, and students to start from."""
    return {
        "teacher": write(tmp_path, "teacher", TEACHER, 1),
        "other": write(tmp_path, "other", TEACHER, 2),
        "student": write(tmp_path, "student", STUDENT),
        "large student": write(tmp_path, "large-student", TEACHER, 3),
    }


@pytest.fixture
def train(small_data: Data, weights: dict[str, Artifact], tmp_path: Path) -> Train:
    """Run a stage with the cache, unless told otherwise, and return the weights and the history."""

    def run(
        fit: FitConfig = FIT,
        *,
        seed: int = 0,
        cache: str = "cache",
        teachers: tuple[str, ...] = ("teacher",),
        start: str = "student",
        model: ModelConfig = MODEL,
        data: Data = small_data,
        store: TrainingStore | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> tuple[dict[str, Tensor], History]:
        output = tmp_path / "stage"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        context = StageContext(
            "student",
            output,
            data,
            Execution(seed=seed, progress=progress or SilentProgress()),
            tmp_path / cache,
            teachers=tuple(weights[name] for name in teachers),
            weights=weights[start],
            store=store,
        )
        config = DistillConfig(model, "teacher", fit, **{"teacher_cache": True, **changes})
        artifact = distill.run(config, None, context)
        return load_checkpoint(artifact.main_file).state, torch_details(artifact).history

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of a teacher has been given; nothing when no teacher was even loaded."""
    found: list[int] = []
    open_teacher = teachers.open_teacher

    def open_and_count(*arguments: Any) -> Teacher:
        found.append(0)
        opened = open_teacher(*arguments)
        opened.register_forward_hook(lambda _, inputs, __: found.append(len(inputs[0])))
        return opened

    monkeypatch.setattr(distill, "open_teacher", open_and_count)
    return found
