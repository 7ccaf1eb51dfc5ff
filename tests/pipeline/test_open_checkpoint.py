"""Checkpoints without a header of ours: the network is found from names and shapes, all else from the config beside them."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError, CheckpointError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.safe_reader import METADATA_KEY
from convnext_deploy.models.variants import build_model
from convnext_deploy.models.zoo.published import default_evaluation
from convnext_deploy.pipeline.open_artifact import open_input
from tests.weights import PREPROCESS, write_weights


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors"])
@pytest.mark.parametrize(
    "spec", [ModelSpec("convnext_atto", 7, 3, 4), ModelSpec("convnextv2_femto", 2, 1, 2)], ids=lambda spec: spec.variant
)
def test_open_input_infers_the_network_of_a_file_without_header(tmp_path: Path, suffix: str, spec: ModelSpec) -> None:
    path = tmp_path / f"weights{suffix}"
    state = build_model(spec).state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if suffix == ".pth" else state, path)
    artifact = open_input(path)
    preprocess = default_evaluation(spec.variant)
    if spec.in_channels == 1:
        preprocess = dataclasses.replace(preprocess, mean=(0.5,), std=(0.5,))
    reason = f"assumed: as published with {spec.variant}, because the file does not tell"
    statistics = {
        3: f"mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (all {reason})",
        1: f"mean 0.5, std 0.5 (size, crop, crop mode and interpolation {reason}; mean and std assumed: usual for 1 channels)",
    }
    notes = (
        f"weights{suffix}: weights in the names of facebook",
        *(["weights.pth: took the weights under 'model'"] if suffix == ".pth" else []),
        f"weights{suffix}: a {spec.variant} with {spec.num_classes} classes",
        f"weights{suffix}: evaluated at 224 pixels, center crop 0.875, bicubic, {statistics[spec.in_channels]}",
    )
    files = (describe_file(path),)
    assert artifact == Artifact(tmp_path, TorchDetails(), "fp32", spec, None, preprocess, files, notes=notes)


def test_open_input_tells_of_half_precision_and_of_a_missing_head(tmp_path: Path) -> None:
    state = build_model(ModelSpec("test_convnext", 3)).state_dict()
    half = {key: tensor.half() for key, tensor in state.items() if not key.startswith("head.")}
    torch.save({"state_dict": half}, tmp_path / "w.ckpt")
    artifact = open_input(tmp_path / "w.ckpt")
    assert artifact.model == ModelSpec("test_convnext", 0)
    assert "w.ckpt: weights in float16 are converted to float32" in artifact.notes
    assert "w.ckpt: a test_convnext with no classes, a feature extractor: it gives (N, 64)" in artifact.notes
    assert load_network(artifact)(torch.zeros(2, 3, 64, 64)).shape == (2, 64)


def test_open_input_says_which_evaluation_was_asked_for(tmp_path: Path) -> None:
    torch.save(build_model(ModelSpec("convnext_atto", 3)).state_dict(), tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth", asked=PreprocessSettings(image_size=96, crop_pct=0.9))
    assert (artifact.preprocess.image_size, artifact.preprocess.crop_pct) == (96, 0.9)
    assert artifact.notes[-1] == (
        "w.pth: evaluated at 96 pixels, center crop 0.9, bicubic, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (size and crop "
        "asked for; crop mode, interpolation, mean and std assumed: as published with convnext_atto, because the file does not "
        "tell)"
    )


CONFIG = {
    "architecture": "convnext_atto",
    "label_names": ["cat", "dog", "owl"],
    "pretrained_cfg": {
        "input_size": [3, 64, 64],
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "mean": list(PREPROCESS.mean),
        "std": list(PREPROCESS.std),
    },
}


def write_folder(folder: Path, *names: str) -> Path:
    """Write a folder of weights as other libraries do; each file's head has one class more than that of the file before."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for classes, name in enumerate(names, start=3):
        state = build_model(ModelSpec("convnext_atto", classes)).state_dict()
        save_file(state, folder / name) if name.endswith(".safetensors") else torch.save(state, folder / name)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pth"])
@pytest.mark.parametrize("bare", [False, True])
def test_open_input_reads_the_config_beside_the_weights_of_a_folder(tmp_path: Path, name: str, bare: bool) -> None:
    folder = write_folder(tmp_path / "folder", name)
    artifact = open_input(folder / name if bare else folder)
    assert artifact.main_file == folder / name
    assert (artifact.preprocess, artifact.class_names) == (PREPROCESS, ("cat", "dog", "owl"))
    assert artifact.notes[-1] == (
        f"{name}: evaluated at 64 pixels, center crop 0.8, bilinear, mean 0.41 0.46 0.5, std 0.21 0.25 0.3 (all from config.json "
        "beside it)"
    )


def test_open_input_takes_the_safest_weights_of_a_folder(tmp_path: Path) -> None:
    order = ("model.safetensors", "pytorch_model.bin", "model.pth")
    folder = write_folder(tmp_path / "folder", *order)
    for classes, name in enumerate(order, start=3):
        artifact = open_input(folder)
        assert (artifact.main_file.name, artifact.model.num_classes) == (name, classes)
        (folder / name).unlink()


def test_open_input_leaves_a_config_alone_when_the_file_has_a_name_of_its_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", "best.pth")
    (folder / "config.json").write_text("{ not JSON")
    artifact = open_input(folder / "best.pth")
    assert (artifact.preprocess, artifact.class_names) == (default_evaluation("convnext_atto"), None)


def test_open_input_leaves_the_config_of_another_tool_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    artifact = open_input(folder)
    assert (artifact.preprocess, artifact.class_names) == (default_evaluation("convnext_atto"), None)


def test_open_input_believes_its_own_header_more_than_a_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", "model.pth")
    write_weights(folder / "model.safetensors", ModelSpec("convnext_atto", 2), ("a", "b"))
    artifact = open_input(folder)
    assert (artifact.class_names, artifact.preprocess.image_size, artifact.notes) == (("a", "b"), 224, ())


def test_open_input_raises_when_the_checkpoint_is_of_another_architecture(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"is not a ConvNeXt checkpoint.*layer1\.0\.conv1\.weight"):
        open_input(tmp_path / "resnet.pth")


def test_open_input_raises_when_the_checkpoint_is_damaged(small_artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(small_artifacts["student"].main_file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a readable safetensors file"):
        open_input(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps([1], protocol=2)])
def test_open_input_raises_when_a_pth_file_holds_no_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises((ArtifactError, CheckpointError), match=r"a\.pth"):
        open_input(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "header",
    [
        {"model": {"variant": "convnext_atto", "num_classes": 3}},
        {"model": 5, "preprocess": {}, "class_names": None, "precision": "fp32"},
        {"unrelated": 1},
    ],
)
def test_open_input_raises_when_the_header_is_damaged(tmp_path: Path, header: dict[str, Any]) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={METADATA_KEY: json.dumps(header)})
    with pytest.raises(ArtifactError, match=r"a\.safetensors has a damaged header.*Make it again"):
        open_input(tmp_path / "a.safetensors")


def test_bare_file_carries_no_more_tensors_than_its_network_needs(small_artifacts: dict[str, Artifact]) -> None:
    artifact = small_artifacts["student"]
    assert set(load_file(artifact.main_file)) == set(build_model(artifact.model).state_dict())
