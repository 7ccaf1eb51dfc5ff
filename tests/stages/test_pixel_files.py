"""Which file of decoded images a training stage takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import ArrayImages, Data
from convnext_deploy.data.loaders import TrainingBatches
from convnext_deploy.stages import train, training_setup
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.distributed import World
from convnext_deploy.system.execution import Execution
from tests.conftest import CLASSES
from tests.data.test_loaders import noise_images

Run = Callable[..., set[str]]
FIT = FitConfig(epochs=1, batch_size=6, warmup_epochs=0, autocast="off")


def small(side: int = 20) -> Data:
    images = noise_images(12, side)
    labelled = ArrayImages(images.arrays, np.arange(12) % 3)
    return Data("noise", labelled, labelled, CLASSES)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Begin a training with a cache folder, draw an epoch of its batches, and return which files there are."""

    def draw(network: object, batches: TrainingBatches, *_: Any, **__: Any) -> list[dict[str, float]]:
        assert len(list(batches.epoch(0))) == 2
        return []

    monkeypatch.setattr(training_setup, "fit", draw)

    def begin(data: Data, *, in_channels: int = 3, keep_pixels: bool = True) -> set[str]:
        (tmp_path / "stage").mkdir(exist_ok=True)
        settings = StageContext(
            "student",
            tmp_path / "stage",
            data,
            Execution(cache_dir=tmp_path / "cache" if keep_pixels else None),
            tmp_path / "cache",
        )
        train.run(TrainConfig(ModelConfig("test_convnext", 64, in_channels=in_channels), FIT), None, settings)
        return {path.name for path in (tmp_path / "cache").glob("pixels/*")}

    return begin


def test_images_are_decoded_once_for_all_stages_of_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small()
    assert run(data, keep_pixels=False) == set()
    with monkeypatch.context() as patch:
        patch.setattr(ArrayImages, "load", lambda *_: pytest.fail("is decoded again"))
        assert run(data, keep_pixels=False) == set()
    # each rank of a machine would otherwise decode and hold all of them
    monkeypatch.setattr(training_setup, "world", lambda: World(0, 2))
    assert len(run(small(21), keep_pixels=False)) == 1


def test_stage_keeps_pixels_in_a_file_only_when_asked(run: Run) -> None:
    assert run(small(), keep_pixels=False) == set()
    assert len(run(small())) == 1
    assert len(run(small(97))) == 1  # large images have none


def test_stage_takes_the_file_of_its_own_images(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    files = run(small())
    load = ArrayImages.load

    def fail(self: ArrayImages, index: int) -> Image.Image:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(ArrayImages, "load", fail)
    assert run(small()) == files
    assert run(small(), keep_pixels=False) == files  # what is there is taken
    monkeypatch.setattr(ArrayImages, "load", load)
    changed = noise_images(12, 20).arrays
    changed[3, 4, 5] ^= 1
    other = dataclasses.replace(small(), train=ArrayImages(changed, small().train.labels))
    assert len(run(other)) == 2
    assert len(run(small(), in_channels=1)) == 3
    monkeypatch.setattr(training_setup, "RESULT_VERSION", 0)
    assert len(run(small())) == 4
