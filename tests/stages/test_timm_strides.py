"""Networks of timm with a stem of stride 2 and dilated model stages go through INT8 to a graph that answers as they do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch

from convnext_deploy.config.choices import Target
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.quantization.prepare import quantized_layers
from convnext_deploy.runners import open_runner
from convnext_deploy.stages import onnx, ptq, tensorrt
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from tests.details import engine_details
from tests.models.conftest import random_weights

VARIANT, SIDE = "test_convnext2", 32
OPTIONS = {"halved": {"patch_size": 2}, "dilated": {"patch_size": 2, "output_stride": 8}}


def checkpoint(folder: Path, options: dict[str, Any], classes: int) -> Path:
    network = timm.create_model(VARIANT, num_classes=classes, **options)
    arguments = argparse.Namespace(img_size=SIDE, model_kwargs=options)
    torch.save({"state_dict": random_weights(network.state_dict(), 0), "args": arguments}, folder / "best.pth")
    return folder / "best.pth"


def context(folder: Path, data: Data | None) -> StageContext:
    folder.mkdir()
    return StageContext("stage", folder, data, Execution(), folder.parent / "cache")


@pytest.mark.heavy
@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_int8_graphs_answer_as_the_network(
    options: dict[str, Any], target: Target, small_data: Data, tmp_path: Path
) -> None:
    source = open_input(checkpoint(tmp_path, options, len(small_data.class_names)))
    config = PTQConfig(target=target, calibration_images=16, smoothing=False, bias_correction=False)
    quantized = ptq.run(config, source, context(tmp_path / "ptq", small_data))
    network, images = load_network(quantized), torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    exported = onnx.run(ONNXConfig(), quantized, context(tmp_path / "onnx", small_data))
    runner = open_runner(exported)
    found, expected = runner.logits(images.numpy()), network(images).numpy()
    spread = expected.std()
    assert np.abs(found - expected).mean() < 0.05 * spread, "the graph must be the network that was quantized"
    difference = np.abs(expected - load_network(source)(images).numpy()).mean()
    assert difference < 0.3 * spread  # random weights amplify rounding
    layers = {name: layer for name, layer in quantized_layers(network) if name.startswith("downsample_layers.")}
    assert {"downsample_layers.0.3", *(f"downsample_layers.{stage}.1" for stage in (1, 2, 3))} <= set(layers)
    assert not any(layer.input_shift for layer in layers.values() if layer.padding != (0, 0))
    if target == "tensorrt":
        pytest.importorskip("tensorrt_rtx")
        fp16 = onnx.run(ONNXConfig(precision="fp16"), quantized, context(tmp_path / "fp16", small_data))
        engine = tensorrt.run(TensorRTConfig(gpus=("sm89",)), fp16, context(tmp_path / "engine", None))
        report = engine_details(engine).precisions["SM89"]
        assert report is not None
        assert (report.requested_int8, report.fallbacks, report.unseen) == (12, (), ())
