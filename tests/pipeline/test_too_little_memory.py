"""A stage that runs out of memory is named, with what takes less; what was finished before it stays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from convnext_deploy.config.recipe import Recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import TooLittleMemoryError
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.stages import ptq, train
from tests.pipeline.conftest import settings_for

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.2 GiB is free."
)


@pytest.mark.parametrize(
    ("stage", "module", "what"),
    [
        ("model (train)", train, r"lower batch_size or image_size, raise accumulation_steps.*fewer --workers"),
        ("ptq (ptq)", ptq, "lower batch_size or calibration_images"),
    ],
)
def test_stage_that_runs_out_of_memory_is_named_and_finished_ones_stay(
    stage: str, module: object, what: str, light_recipe: Recipe, small_data: Data, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(module, "fit_network" if module is train else "quantize_network", fail)
    with pytest.raises(
        TooLittleMemoryError, match=rf"^{re.escape(stage)}: the GPU has too little memory \(2.00 GiB.*{what}"
    ):
        run_recipe(light_recipe, settings_for(tmp_path), data=small_data)
    assert not list(tmp_path.rglob("*.partial"))
