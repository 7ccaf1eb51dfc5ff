"""Networks of timm with a stem of stride 2 and dilated model stages go through INT8 to a graph that answers as they do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

import convnext_deploy as api
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
from tests.conftest import CLASSES
from tests.details import engine_details
from tests.models.conftest import random_weights
from tests.rows import accuracy_of

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
    if target in ("tensorrt", "tensorrt-fp8"):
        pytest.importorskip("tensorrt_rtx")
        fp16 = onnx.run(ONNXConfig(precision="fp16"), quantized, context(tmp_path / "fp16", small_data))
        engine = tensorrt.run(TensorRTConfig(gpus=("sm89",)), fp16, context(tmp_path / "engine", None))
        report = engine_details(engine).precisions["SM89"]
        assert report is not None
        assert (report.requested, report.fallbacks, report.unseen) == (12, (), ())


def scored_by_timm(folder: Path, images: Path, options: dict[str, Any]) -> tuple[Path, int]:
    """Write a checkpoint that tells the classes apart, and count the right answers as timm's own evaluation does."""
    network: Any = timm.create_model(VARIANT, num_classes=len(CLASSES), **options).eval()
    network.load_state_dict(random_weights(network.state_dict(), 0))
    transform: Any = create_transform(SIDE, is_training=False, interpolation="bicubic", crop_pct=0.875)

    def read(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        files = sorted((images / part).glob("*/*.png"))
        labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
        return torch.stack([transform(Image.open(file).convert("RGB")) for file in files]), labels

    pixels, labels = read("train")
    features = network.forward_head(network.forward_features(pixels), pre_logits=True)
    means = torch.stack([features[labels == number].mean(0) for number in range(len(CLASSES))])
    network.head.fc.weight.copy_(means)
    network.head.fc.bias.copy_(-means.square().sum(1) / 2)  # the class with the nearest mean
    arguments = argparse.Namespace(img_size=SIDE, crop_pct=0.875, interpolation="bicubic", model_kwargs=options)
    torch.save({"state_dict": network.state_dict(), "args": arguments}, folder / "best.pth")
    pixels, labels = read("val")
    return folder / "best.pth", int((network(pixels).argmax(1) == labels).sum())


@pytest.mark.heavy
@pytest.mark.parametrize("target", get_args(Target))
@torch.no_grad()
def test_top1_is_that_of_timm_through_int8_export_and_bundle(
    target: Target, image_folder: Path, tmp_path: Path
) -> None:
    file, expected = scored_by_timm(tmp_path, image_folder, OPTIONS["halved"])
    data, how = api.DataOptions(image_folder), api.ExecutionOptions(device="cpu", workers=0)
    made = api.quantize(
        file, target=target, method="ptq", calibration_method="minmax", calibration_images=16, out=tmp_path / "int8",
        data=data, execution=how,
    )  # fmt: skip
    source, int8 = made.report.rows[0], made.report.rows[-1]
    assert (accuracy_of(source).correct, accuracy_of(source).total) == (expected, 18)
    assert expected > 9  # half of them: twice what guessing gives
    exported = api.export(int8.identity.artifact, out=tmp_path / "onnx", data=data, execution=how)
    graph = next(row for row in exported.report.rows if row.identity.kind == "onnx")
    # of 18 images: rounding may change the answer to one
    assert [abs(round(18 * accuracy_of(row).value) - expected) <= 1 for row in (int8, graph)] == [True, True]
    bundle = api.bundle(graph.identity.artifact, tmp_path / "bundle", golden_images=4, data=data)
    assert api.verify_bundle(bundle.path, require=("onnx",)).passed
