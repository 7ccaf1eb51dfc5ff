"""timm's ConvNeXt with other patch sizes and output strides: other strides and dilated model stages, which are read as they are."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from convnext_deploy.artifacts.details import TOLERANCES
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.hub_config import timm_config
from convnext_deploy.models.checkpoints.key_maps import check_writable, from_native
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.fold import fold
from convnext_deploy.models.variants import build_model, timm_layout
from convnext_deploy.models.zoo.cost import count_macs, count_parameters, feature_map_sides
from convnext_deploy.pipeline.open_artifact import open_input
from tests.models.conftest import random_weights

VARIANT = "test_convnext2"
LAYOUTS: dict[str, tuple[dict[str, Any], ModelSpec]] = {
    "patch size 2": ({"patch_size": 2}, ModelSpec(VARIANT, 7, patch_size=2, strides=(2, 2, 2, 2))),
    "patch size 8": (
        {"patch_size": 8},
        ModelSpec(VARIANT, 7, patch_size=8, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    ),
    "output stride 16": ({"output_stride": 16}, ModelSpec(VARIANT, 7, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))),
    "output stride 8": ({"output_stride": 8}, ModelSpec(VARIANT, 7, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))),
    "patch size 2, output stride 8": (
        {"patch_size": 2, "output_stride": 8},
        ModelSpec(VARIANT, 7, patch_size=2, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4)),
    ),
    "patch size 16": (
        {"patch_size": 16},
        ModelSpec(VARIANT, 7, patch_size=16, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    ),
}
each_layout = pytest.mark.parametrize(("options", "spec"), LAYOUTS.values(), ids=LAYOUTS)


def theirs(options: dict[str, Any]) -> nn.Module:
    network = timm.create_model(VARIANT, num_classes=7, **options)
    network.load_state_dict(random_weights(network.state_dict(), 0))
    return network.eval()


def written(folder: Path, network: nn.Module, options: dict[str, Any]) -> Path:
    """Write a checkpoint as timm's `train.py --model-kwargs` does."""
    path = folder / "model_best.pth.tar"
    arguments = argparse.Namespace(model=VARIANT, num_classes=7, img_size=96, model_kwargs=options)
    torch.save({"state_dict": network.state_dict(), "args": arguments}, path)
    return path


@each_layout
def test_networks_of_timm_give_their_logits(options: dict[str, Any], spec: ModelSpec, tmp_path: Path) -> None:
    reference = theirs(options)
    artifact = open_input(written(tmp_path, reference, options))
    assert artifact.model == spec
    network, images = load_network(artifact), torch.randn(2, 3, 101, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(images), rtol=1e-5, atol=1e-5)
    folding = fold(network, artifact.preprocess)
    assert all(each.relative < TOLERANCES[each.precision] for each in folding.certificate.differences)


@each_layout
def test_costs_are_those_of_the_network(options: dict[str, Any], spec: ModelSpec) -> None:
    network = build_model(spec)
    assert count_parameters(spec) == sum(parameter.numel() for parameter in network.parameters())
    sides: list[int] = []
    macs: list[int] = []

    def measure(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        maps = output.movedim(1, -1) if isinstance(layer, nn.Conv2d) else output
        if maps.ndim == 4 and maps.shape[1] % 2:  # what is cropped, to pad on one side alone
            maps = maps[:, 1:, 1:]
        macs.append(layer.weight.numel() * maps[0, ..., 0].numel())  # type: ignore[operator]  # a layer

    for stage in network.stages:
        stage.register_forward_hook(lambda _, __, output: sides.append(output.shape[1]))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(measure)
    with torch.no_grad():
        network(torch.zeros(1, spec.in_channels, 128, 128))
    assert tuple(sides) == feature_map_sides(spec, 128)
    assert count_macs(spec, 128) == sum(macs)


@each_layout
def test_networks_go_back_to_timm(options: dict[str, Any], spec: ModelSpec, tmp_path: Path) -> None:
    artifact = open_input(written(tmp_path, theirs(options), options))
    config = timm_config(artifact.model, artifact.preprocess, None)
    assert config["model_args"] == options
    state = from_native(load_network(artifact).state_dict(), spec, "timm")
    folder = tmp_path / "back"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(again(images), load_network(open_input(folder))(images), rtol=1e-5, atol=1e-5)
    assert open_input(folder).model == spec


def test_what_no_library_has_is_not_written() -> None:
    for spec, dialect, what in (
        (ModelSpec(VARIANT, 7, patch_size=2), "timm", "strides of (1, 2, 2, 2)"),
        (LAYOUTS["patch size 2"][1], "facebook", "a patch size of 2"),
        (LAYOUTS["output stride 16"][1], "huggingface", "strides of (1, 2, 2, 1)"),
        (ModelSpec("convnext_tiny", 7, dilations=(1, 1, 1, 2)), "torchvision", "dilations of (1, 1, 1, 2)"),
    ):
        plain = dataclasses.replace(spec, variant="convnext_tiny")
        with pytest.raises(CheckpointError, match="lacks") as caught:
            check_writable(plain, dialect)  # type: ignore[arg-type]  # one of them
        assert what in str(caught.value)


def test_a_patch_size_of_2_without_its_downsampling_is_not_of_timm(tmp_path: Path) -> None:
    state = {
        key: value for key, value in theirs({"patch_size": 2}).state_dict().items() if "stages.0.downsample" not in key
    }
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no downsampling before the first model stage behind a patch size of 2"):
        open_input(tmp_path / "w.pth")


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 6, 8, 16, 32])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_timm_layout_is_that_of_timm(patch_size: int, output_stride: int) -> None:
    with torch.device("meta"):
        network: Any = timm.create_model(VARIANT, patch_size=patch_size, output_stride=output_stride)
    strides, dilations = timm_layout(patch_size, output_stride)
    assert dilations == tuple(stage.blocks[0].conv_dw.dilation[0] for stage in network.stages)
    found = [getattr(stage.downsample, "__getitem__", lambda _: None)(1) for stage in network.stages]
    assert strides == tuple(1 if layer is None else layer.stride[0] for layer in found)
