"""Engines of standard TensorRT where there are a GPU and the bindings: built, taken stock of, and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.runners import open_runner
from convnext_deploy.system.cuda_driver import cuda_driver_error
from convnext_deploy.system.execution import Execution
from tests.details import engine_details, onnx_details


@pytest.mark.gpu
@pytest.mark.skipif(cuda_driver_error() is not None, reason="no GPU runs the engine")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_engine_of_standard_tensorrt_agrees_with_onnx_runtime(
    small_artifacts: dict[str, Artifact], tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("tensorrt")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA support")
    source = small_artifacts[f"onnx-{precision}"]
    config = TensorRTConfig("tensorrt", max_batch_size=4, timing_cache=str(tmp_path / "timing.cache"))
    recipe = Recipe("gpu", (StageEntry("engine", config, "source"),), source="given")
    run_recipe(recipe, Settings(tmp_path, Execution()), source=source)
    engine = read_artifact(tmp_path / "stages" / "engine")
    assert (tmp_path / "timing.cache").stat().st_size > 0
    report = engine_details(engine).precisions["this GPU"]
    assert report is not None
    assert report.requested_int8 == (0 if precision == "fp32" else onnx_details(source).quantized_layers)
    images = np.random.default_rng(0).normal(size=(9, 3, 32, 32)).astype(np.float32)
    expected, found = (open_runner(artifact).logits(images) for artifact in (source, engine))
    # The GPU computes float products in TF32, with 10 bits of mantissa.
    assert np.abs(found - expected).max() <= 0.05 * np.ptp(expected)
