"""The network computes the same logits as torchvision's ConvNeXt and timm's ConvNeXt V2 with the same random weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import convnext as torchvision_convnext
from torchvision.models.convnext import CNBlockConfig

from convnext_deploy.artifact import ModelSpec
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import VARIANTS, build_model

NUM_CLASSES = 16
TOLERANCE = 1e-5

TORCHVISION_BLOCK = {"block.0": "dwconv", "block.2": "norm", "block.3": "pwconv1", "block.5": "pwconv2"}
TIMM_NAMES = {
    "stem": "downsample_layers.0",
    "conv_dw": "dwconv",
    "mlp.fc1": "pwconv1",
    "mlp.fc2": "pwconv2",
    "mlp.grn.weight": "grn.gamma",
    "mlp.grn.bias": "grn.beta",
    "head.norm": "norm",
    "head.fc": "head",
}


def random_weights(reference: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw weights that keep activations near 1 and let every parameter, gamma and bias too, change the logits."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, empty in reference.state_dict().items():
        noise = torch.randn(empty.shape, generator=generator)
        if "grn" not in key and empty.ndim in (2, 4):
            weights[key] = noise / empty[0].numel() ** 0.5
        elif "grn" not in key and key.endswith("weight"):
            weights[key] = 1 + 0.2 * noise
        else:
            weights[key] = 0.3 * noise
    return weights


def from_torchvision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's keys: `features` alternates between downsampling and model stages."""
    renamed = {}
    for key, tensor in weights.items():
        name = key.replace("classifier.0", "norm").replace("classifier.2", "head")
        if found := re.fullmatch(r"features\.(\d)\.(\d+)\.(.+)", name):
            position, index, rest = int(found[1]), found[2], found[3]
            for theirs, ours in TORCHVISION_BLOCK.items():
                rest = rest.replace(theirs, ours)
            rest = rest.replace("layer_scale", "gamma")
            folder = "stages" if position % 2 else "downsample_layers"
            name = f"{folder}.{position // 2}.{index}.{rest}"
        renamed[name] = tensor.flatten() if name.endswith("gamma") else tensor
    return renamed


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's keys; its small variants write the pointwise layers as 1×1 convolutions."""
    renamed = {}
    for key, tensor in weights.items():
        name = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", key)
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        for theirs, ours in TIMM_NAMES.items():
            name = re.sub(rf"(^|\.){re.escape(theirs)}(\.|$)", rf"\g<1>{ours}\g<2>", name)
        if "pwconv" in name and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        renamed[name] = tensor.view(1, 1, 1, -1) if ".grn." in name else tensor
    return renamed


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def compare(ours: ConvNeXt, reference: nn.Module, convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
    """Give both networks, made on the meta device, the same weights and compare their logits."""
    weights = random_weights(reference, seed=1)
    reference.load_state_dict(weights, assign=True)
    ours.load_state_dict(convert(weights), assign=True)
    reference.eval()
    ours.eval()
    for size in (64, 96):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
        expected = reference(images)
        assert expected.std() > 0.1
        assert relative_error(ours(images), expected) <= TOLERANCE


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_forward_equals_torchvision_when_weights_are_equal(size: str) -> None:
    with torch.device("meta"):
        reference = getattr(torchvision_convnext, f"convnext_{size}")(num_classes=NUM_CLASSES)
        ours = build_model(ModelSpec(f"convnext_{size}", NUM_CLASSES))
    compare(ours, reference, from_torchvision)


def test_forward_equals_torchvision_when_widths_are_those_of_large() -> None:
    depths, dims = (1, 2, 3, 1), VARIANTS["convnext_large"].dims
    rows = [CNBlockConfig(*row) for row in zip(dims, (*dims[1:], None), depths, strict=True)]
    with torch.device("meta"):
        reference = torchvision_convnext.ConvNeXt(rows, num_classes=NUM_CLASSES)
        ours = ConvNeXt(depths, dims, num_classes=NUM_CLASSES)
    compare(ours, reference, from_torchvision)


def test_state_keys_cover_torchvision_large() -> None:
    with torch.device("meta"):
        theirs = from_torchvision(torchvision_convnext.convnext_large().state_dict())
        ours = build_model(ModelSpec("convnext_large", 1000)).state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in ours.items()}


@pytest.mark.parametrize("variant", ["convnextv2_atto", "convnextv2_nano", "convnext_femto"])
def test_forward_equals_timm_when_weights_are_equal(variant: str) -> None:
    with torch.device("meta"):
        reference = timm.create_model(variant, pretrained=False, num_classes=NUM_CLASSES)
        ours = build_model(ModelSpec(variant, NUM_CLASSES))
    compare(ours, reference, from_timm)
