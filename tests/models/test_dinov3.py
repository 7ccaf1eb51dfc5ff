"""DINOv3's ConvNeXts, which have no head: of transformers, of timm and of the official repository; read, trained, learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

from convnext_deploy.api.distill import distill
from convnext_deploy.api.options import DataOptions, TrainingOptions
from convnext_deploy.api.train import train
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convnext_deploy.config.choices import FeatureOutput
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input, without_head
from tests.models.conftest import random_weights

DEPTHS, DIMS = (2, 2, 6, 2), (40, 80, 160, 320)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SQUARE = Preprocess(224, 1.0, "bilinear", IMAGENET_MEAN, IMAGENET_STD, "squash")


def given_by(path: Path, output: FeatureOutput) -> Tensor:
    with torch.no_grad():
        return load_network(without_head(open_input(path), output, path))(IMAGES)  # type: ignore[no-any-return]  # a module


def official_state() -> dict[str, Tensor]:
    """Weights under the names of `dinov3/models/convnext.py`: the last norm stands there twice, as `norm` and as `norms.3`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    add("downsample_layers.0.0", DIMS[0], 3, 4, 4)
    add("downsample_layers.0.1", DIMS[0])
    for s in (1, 2, 3):
        add(f"downsample_layers.{s}.0", DIMS[s - 1])
        add(f"downsample_layers.{s}.1", DIMS[s], DIMS[s - 1], 2, 2)
    for s, (depth, dim) in enumerate(zip(DEPTHS, DIMS, strict=True)):
        for block in range(depth):
            name = f"stages.{s}.{block}"
            shapes[f"{name}.gamma"] = (dim,)
            add(f"{name}.dwconv", dim, 1, 7, 7)
            add(f"{name}.norm", dim)
            add(f"{name}.pwconv1", 4 * dim, dim)
            add(f"{name}.pwconv2", dim, 4 * dim)
    add("norm", DIMS[-1])
    state = random_weights({name: torch.empty(shape) for name, shape in shapes.items()}, 0)
    return {**state, "norms.3.weight": state["norm.weight"], "norms.3.bias": state["norm.bias"]}


def official_forward(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The network computed here from its description alone: the pooled features and the normalized map, `(N, C, H, W)`."""

    def norm(name: str, x: Tensor, *, first: bool = False) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if not first:
            return F.layer_norm(x, weight.shape, weight, bias, 1e-6)
        return norm(name, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    x = F.conv2d(images, state["downsample_layers.0.0.weight"], state["downsample_layers.0.0.bias"], stride=4)
    x = norm("downsample_layers.0.1", x, first=True)
    for s, depth in enumerate(DEPTHS):
        if s:
            x, name = norm(f"downsample_layers.{s}.0", x, first=True), f"downsample_layers.{s}.1"
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
        for block in range(depth):
            name = f"stages.{s}.{block}"
            weight, bias = state[f"{name}.dwconv.weight"], state[f"{name}.dwconv.bias"]
            y = norm(f"{name}.norm", F.conv2d(x, weight, bias, padding=3, groups=len(weight)).permute(0, 2, 3, 1))
            y = F.gelu(F.linear(y, state[f"{name}.pwconv1.weight"], state[f"{name}.pwconv1.bias"]))
            y = F.linear(y, state[f"{name}.pwconv2.weight"], state[f"{name}.pwconv2.bias"])
            x = x + (state[f"{name}.gamma"] * y).permute(0, 3, 1, 2)
    return norm("norm", x.mean((2, 3))), norm("norm", x, first=True)


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_official_file_gives_its_features(prefix: str, tmp_path: Path) -> None:
    state = official_state()
    pooled, places = official_forward(state, IMAGES)
    # EUPE's files also have what led its features to those of its teachers
    extra = {"projectors.0.weight": torch.ones(8, DIMS[-1]), "projectors.0.bias": torch.ones(8)}
    torch.save({prefix + key: value for key, value in {**state, **extra}.items()}, tmp_path / "dinov3_convnext.pth")
    opened = open_input(tmp_path / "dinov3_convnext.pth")
    assert (opened.model.variant, opened.model.num_classes) == ("convnext_atto", 0)
    assert any("left out" in note and "norms.3.weight" in note for note in opened.notes)
    torch.testing.assert_close(given_by(tmp_path / "dinov3_convnext.pth", "features"), pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given_by(tmp_path / "dinov3_convnext.pth", "feature-map"), places, rtol=1e-5, atol=1e-5)


def dinov3_of_transformers(folder: Path) -> Any:
    config = DINOv3ConvNextConfig(depths=list(DEPTHS), hidden_sizes=list(DIMS), layer_norm_eps=1e-5)
    network = DINOv3ConvNextModel(config)
    network.load_state_dict(random_weights(network.state_dict(), 0))
    network.eval().save_pretrained(folder)
    return network


def test_transformers_folder_tells_eps_and_square_images(tmp_path: Path) -> None:
    network = dinov3_of_transformers(tmp_path)
    name = "DINOv3ViTImageProcessor"  # which ends in Fast before transformers 5
    processor = getattr(transformers, name, None) or getattr(transformers, f"{name}Fast")
    processor().save_pretrained(tmp_path)
    opened = open_input(tmp_path)
    assert opened.preprocess == SQUARE
    assert set(opened.preprocess.origins.values()) == {"from config.json beside it"}
    with torch.no_grad():
        expected = network(IMAGES)
    pooled, places = given_by(tmp_path, "features"), given_by(tmp_path, "feature-map")
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)
    tokens = places.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected.last_hidden_state[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "told", [{}, {"do_center_crop": None, "crop_size": None, "size": {"height": 224, "width": 224}}]
)
def test_processor_of_dinov3_has_defaults_of_its_own(told: dict[str, Any], tmp_path: Path) -> None:
    dinov3_of_transformers(tmp_path)
    content = {"image_processor_type": "DINOv3ViTImageProcessorFast", **told}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert open_input(tmp_path).preprocess == SQUARE


@pytest.mark.parametrize("tag", ["dinov3_lvd1689m", "eupe_lvd1689m"])
def test_timm_config_is_read(tag: str, tmp_path: Path) -> None:
    network = timm.create_model("convnext_atto", num_classes=0)
    network.load_state_dict(random_weights(network.state_dict(), 0))
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    found = timm.models.get_pretrained_cfg(f"convnext_tiny.{tag}")
    assert found is not None
    known = found.to_dict()
    settings = {
        key: known[key] for key in ("input_size", "crop_pct", "interpolation", "mean", "std", "license", "num_classes")
    }
    config = {"architecture": "convnext_atto", "num_classes": 0, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_input(tmp_path)
    side = 224 if tag.startswith("dino") else 256
    assert opened.preprocess == Preprocess(side, 1.0, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    assert opened.license == known["license"]
    with torch.no_grad():
        expected = network.eval()(IMAGES)
    torch.testing.assert_close(given_by(tmp_path, "features"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
def test_head_is_trained_on_it_and_a_student_learns_its_features(image_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    network = timm.create_model("test_convnext2", num_classes=0)
    torch.save(random_weights(network.state_dict(), 0), weights)
    data, fit = DataOptions(data=str(image_folder), image_size=32), TrainingOptions(epochs=1, batch_size=12)
    tuned = train(checkpoint=weights, out=tmp_path / "tuned", data=data, training=fit)
    source, row = tuned.report.rows
    assert source.not_run == "not validated: it has no head, and only teaches or starts a training"
    assert row.accuracy is not None
    assert row.accuracy.metric == "top-1"
    assert read_artifact(Path(row.identity.artifact)).class_names == ("cat", "dog", "owl")
    with pytest.raises(
        ArtifactError, match="has no classes, and gives features alone: it teaches by the method 'feature'"
    ):
        distill(student="test_convnext3", teacher_checkpoint=weights, out=tmp_path / "kd", data=data, training=fit)
    taught = distill(
        student="test_convnext3",
        teacher_checkpoint=weights,
        distill_method="feature",
        out=tmp_path / "taught",
        data=data,
        training=fit,
    )
    row = taught.report.rows[-1]
    assert row.accuracy is not None
    assert (row.accuracy.metric, row.accuracy.drop) == ("top-1", None)
