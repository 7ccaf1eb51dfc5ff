"""Config files of timm and transformers, as these libraries write them: evaluation, class names and network are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
)

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.hub_config import transformers_config
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from tests.data.test_transforms import picture
from tests.weights import assert_same_logits, fill, noise_images

NAMES = ["cat", "dog", "owl"]
DATA = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.7, "interpolation": "bilinear", "img_size": 160}
ATTO = {"num_channels": 3, "depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320], "num_labels": 3}


# At the sizes below, no margin is odd: half a pixel is rounded differently.
def own_input(preprocess: Preprocess) -> torch.Tensor:
    pixels = evaluation_transform(picture(330, 220), preprocess)
    return normalize(torch.from_numpy(pixels.copy())[None], preprocess)


@torch.inference_mode()
def assert_same_network(artifact: Artifact, model: Any) -> None:
    network = load_network(artifact)
    for side in (64, 96):
        images = noise_images(artifact.model.in_channels, side)
        found = model(images)
        assert_same_logits(network(images), found if isinstance(found, torch.Tensor) else found.logits)


def create_timm(folder: Path, name: str, *, data: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """Save a random network as timm does."""
    model: Any = timm.create_model(name, **{"num_classes": 3, **arguments})
    fill(model)
    save_for_hf(model, str(folder), {"label_names": NAMES}, safe_serialization=True, data_config=data)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "arguments", "spec"),
    [
        ("convnext_atto", {}, ModelSpec("convnext_atto", 3)),
        ("convnextv2_atto", {"in_chans": 1}, ModelSpec("convnextv2_atto", 3, 1)),
        ("test_convnext", {"norm_eps": 1e-3}, ModelSpec("test_convnext", 3, norm_eps=1e-3)),
        ("test_convnext2", {"act_layer": "silu"}, ModelSpec("test_convnext2", 3, activation="silu")),
        ("test_convnext3", {"act_layer": "relu"}, ModelSpec("test_convnext3", 3, activation="relu")),
        ("test_convnext", {"act_layer": "gelu"}, ModelSpec("test_convnext", 3, activation="gelu")),
        ("convnext_atto", {"head_hidden_size": 24}, ModelSpec("convnext_atto", 3, head_hidden_size=24)),
        ("convnext_zepto_rms", {"drop_path_rate": 0.1}, ModelSpec("convnext_zepto_rms", 3)),
    ],
    ids=["v1", "v2-grey", "norm_eps", "silu", "relu", "gelu", "hidden", "zepto"],
)
def test_open_input_builds_the_network_that_timm_saved(
    name: str, arguments: dict[str, Any], spec: ModelSpec, tmp_path: Path
) -> None:
    model = create_timm(tmp_path, name, **arguments)
    artifact = open_input(tmp_path)
    assert (artifact.model, artifact.class_names) == (spec, tuple(NAMES))
    assert_same_network(artifact, model)


def test_open_input_refuses_when_timm_saved_another_norm_with_the_same_weights(tmp_path: Path) -> None:
    create_timm(tmp_path, "convnext_zepto_rms", norm_layer="rmsnorm2d")
    with pytest.raises(CheckpointError, match=r"^[^\n]*norm_layer[^\n]*$"):
        open_input(tmp_path)


@pytest.mark.parametrize("squash", [False, True])
def test_open_input_evaluates_as_timm_does_with_what_it_saved(squash: bool, tmp_path: Path) -> None:
    model = create_timm(tmp_path, "test_convnext", data={**DATA, "crop_mode": "squash" if squash else "center"})
    artifact = open_input(tmp_path)
    mode: Any = "squash" if squash else "center"
    assert artifact.preprocess == Preprocess(160, 0.7, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), mode)
    settings = {
        **resolve_model_data_config(model),
        **json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"],
    }
    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    transform: Any = create_transform(**{name: settings[name] for name in names}, is_training=False)
    torch.testing.assert_close(transform(picture(330, 220))[None], own_input(artifact.preprocess), rtol=0, atol=1e-5)
    assert artifact.notes[-1].endswith(
        f"evaluated at 160 pixels, {mode} crop 0.7, bilinear, mean 0.1 0.2 0.3, std 0.4 0.5 0.6 (all from config.json beside it)"
    )


def create_transformers(folder: Path, version: int, processor: dict[str, Any] | None, **config: Any) -> Any:
    """Save a random network as transformers does, with the files of an image processor if there are settings for one."""
    settings: dict[str, Any] = {**ATTO, **config}
    if version == 1:
        model: Any = ConvNextForImageClassification(ConvNextConfig(**settings))
    else:
        model = ConvNextV2ForImageClassification(ConvNextV2Config(**settings))
    fill(model)
    model.save_pretrained(folder)
    if processor is not None:
        ConvNextImageProcessor(**processor).save_pretrained(folder)
    return model.eval()


OWN_NAMES = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}


@pytest.mark.parametrize(
    ("version", "config", "spec", "names"),
    [
        (1, {}, ModelSpec("convnext_atto", 3, head_norm_eps=1e-12), None),
        (2, OWN_NAMES, ModelSpec("convnextv2_atto", 3, head_norm_eps=1e-12), ("cat", "dog", "owl")),
        (1, {"layer_norm_eps": 1e-3}, ModelSpec("convnext_atto", 3, head_norm_eps=1e-3), None),
        (
            2,
            {"hidden_act": "gelu_pytorch_tanh"},
            ModelSpec("convnextv2_atto", 3, activation="gelu_tanh", head_norm_eps=1e-12),
            None,
        ),
        (1, {"hidden_act": "silu"}, ModelSpec("convnext_atto", 3, activation="silu", head_norm_eps=1e-12), None),
        (1, {"num_channels": 1, "patch_size": 8}, ModelSpec("convnext_atto", 3, 1, 8, head_norm_eps=1e-12), None),
        (
            1,
            {"problem_type": "multi_label_classification"},
            ModelSpec("convnext_atto", 3, head_norm_eps=1e-12, multi_label=True),
            None,
        ),
        (  # the depths and widths of a network that timm alone has, with another eps and activation
            1,
            {"depths": [1, 2, 4, 2], "hidden_sizes": [24, 32, 48, 64]},
            ModelSpec("test_convnext", 3, norm_eps=1e-6, activation="gelu", head_norm_eps=1e-12),
            None,
        ),
    ],
    ids=["v1", "v2-names", "layer_norm_eps", "gelu_tanh", "silu", "grey-patch", "multi-label", "sizes of timm alone"],
)
def test_open_input_builds_the_network_that_transformers_saved(
    version: int, config: dict[str, Any], spec: ModelSpec, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    model = create_transformers(tmp_path, version, None, **config)
    artifact = open_input(tmp_path)
    assert (artifact.model, artifact.class_names) == (spec, names)
    assert_same_network(artifact, model)
    written = transformers_config(artifact.model, artifact.preprocess, names)
    assert written.get("problem_type") == config.get("problem_type")


# what transformers writes if nothing is said: bilinear in 4.56, bicubic in 5
RESAMPLE = {2: "bilinear", 3: "bicubic"}[ConvNextImageProcessor().resample]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"shortest_edge": 224}, **IMAGENET}, (224, 0.875, RESAMPLE, "center")),
        ({"size": {"shortest_edge": 384}, **IMAGENET}, (384, 1.0, RESAMPLE, "squash")),
        ({"size": {"shortest_edge": 160}, "crop_pct": 0.95, "resample": 2}, (160, 0.95, "bilinear", "center")),
        ({"size": {"shortest_edge": 512}, "crop_pct": 0.5}, (512, 1.0, RESAMPLE, "squash")),
        ({"size": {"shortest_edge": 56}, "rescale_factor": 1 / 127.5}, (56, 0.875, RESAMPLE, "center")),
        ({"size": {"shortest_edge": 56}, "do_rescale": False}, (56, 0.875, RESAMPLE, "center")),
        ({"size": {"shortest_edge": 56}, "do_normalize": False}, (56, 0.875, RESAMPLE, "center")),
        ({}, (384, 1.0, RESAMPLE, "squash")),
    ],
    ids=["224", "384", "bilinear", "512", "rescale_factor", "no-rescale", "no-normalize", "defaults"],
)
def test_open_input_evaluates_as_transformers_does_with_what_it_saved(
    processor: dict[str, Any], expected: tuple[object, ...], tmp_path: Path
) -> None:
    create_transformers(tmp_path, 1, processor)
    found = open_input(tmp_path).preprocess
    assert (found.image_size, found.crop_pct, found.interpolation, found.crop_mode) == expected
    theirs = ConvNextImageProcessor.from_pretrained(tmp_path)(images=picture(330, 220), return_tensors="pt")
    own = own_input(found)
    # Pillow and torchvision round the weights of a resize and its result differently, by a few levels of 255
    level = 1 / (255 * torch.tensor(found.std)[:, None, None])
    difference = (theirs["pixel_values"] - own).abs() / level
    assert difference.max() <= 4.01
    assert difference.mean() <= 0.3
