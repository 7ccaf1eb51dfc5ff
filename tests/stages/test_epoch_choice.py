"""Training images set aside choose the best epoch; validation images choose nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.datasets import ArrayImages, Data, FolderImages
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.sampling import selection_indices
from convnext_deploy.data.splits import Split
from convnext_deploy.errors import RecipeError
from convnext_deploy.metrics.epochs import result_epoch
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.stages import train
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.epoch_choice import set_aside
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.scoring import evaluate_classifier
from tests.details import torch_details
from tests.stages.test_distill import MODEL, QUICK

PATIENT = dataclasses.replace(QUICK, epochs=4, patience=1, ema_decay=0.5)


def paths(images: object) -> set[Path]:
    assert isinstance(images, FolderImages)
    return set(images.paths)


def test_the_best_epoch_is_that_of_images_set_aside(small_data: Data, tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    context = StageContext("model", output, small_data, Execution(), tmp_path / "cache")
    assert set_aside(QUICK, context) is context
    aside = set_aside(PATIENT, context)
    assert aside.data is not None
    assert aside.selection is not None
    chosen, trained = paths(aside.selection), paths(aside.data.train)
    assert len(chosen) == round(0.1 * len(small_data.train))
    assert (chosen & trained, chosen | trained) == (set(), paths(small_data.train))
    assert aside.data.validation is small_data.validation

    made: Artifact = train.run(TrainConfig(MODEL, PATIENT), None, context)
    history = torch_details(made).history
    place = result_epoch(history)
    assert place is not None
    images = EvaluationBatches(aside.selection, made.preprocess, 8)
    found = evaluate_classifier(load_network(made), images, "cpu")
    assert found["validation_top1"] == history[place]["ema_selection_top1"]
    assert found["validation_loss"] == pytest.approx(history[place]["ema_selection_loss"], rel=1e-5)
    in_half = evaluate_classifier(load_network(made), images, "cpu", torch.bfloat16)  # as a GPU scores, and a CPU never
    assert 1e-5 < abs(in_half["validation_loss"] / found["validation_loss"] - 1) < 0.05


def test_selection_images_are_no_validation_images_and_leave_every_class(tmp_path: Path) -> None:
    labels = np.array([0] * 20 + [1] * 19 + [2])
    pixels = np.arange(40, dtype=np.uint8).repeat(48).reshape(40, 4, 4, 3)
    validation = ArrayImages(pixels[:20], labels[:20])
    data = Data("none", ArrayImages(pixels, labels), validation, ("a", "b", "c"))
    for seed in range(5):
        chosen = selection_indices(data, 0.5, 100, seed)
        assert set(chosen) <= set(range(20, 39))
        assert len(selection_indices(data, 0.5, 7, seed)) == 7


def test_groups_are_set_aside_whole(tmp_path: Path) -> None:
    files = [tmp_path / f"patient{number // 5}_{number}.png" for number in range(60)]
    for number, file in enumerate(files):
        file.write_bytes(bytes(number + 1))
    images = FolderImages(tuple(files), np.arange(60) % 2)
    data = Data(str(tmp_path), images, FolderImages((), np.zeros(0, np.int64)), ("a", "b"))
    data = dataclasses.replace(data, split=Split(0.1, 0, r"patient\d+"))
    chosen = selection_indices(data, 0.15, 100, 0)
    groups = {index // 5 for index in chosen}
    assert len(groups) >= 2
    assert chosen == [index for index in range(60) if index // 5 in groups]


def test_patience_below_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"patience = -1.*>= 0"):
        FitConfig(patience=-1)
