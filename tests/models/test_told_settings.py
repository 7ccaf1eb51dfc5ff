"""How a checkpoint's own training evaluated it is read from the file, as the library that wrote it uses what it says."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from timm.data.config import resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.utils.checkpoint_saver import CheckpointSaver
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.preprocessing import assumed_fields
from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError, CheckpointError
from convnext_deploy.models.checkpoints.beside_weights import plain
from convnext_deploy.pipeline.open_artifact import open_input
from tests.models.conftest import random_state

# what timm's train.py has when it is called with nothing
TIMM: dict[str, Any] = {
    "model": "test_convnext.r160_in1k",
    "num_classes": 3,
    "img_size": None,
    "input_size": None,
    "in_chans": None,
    "crop_pct": None,
    "mean": None,
    "std": None,
    "interpolation": "",
    "train_interpolation": "random",
    "class_map": "",
    "lr": 1e-3,
}
PUBLISHED = Preprocess(160, 0.95, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@cache
def network(channels: int) -> nn.Module:
    model: nn.Module = timm.create_model("test_convnext", num_classes=3, in_chans=channels)
    return model


@cache
def native() -> dict[str, Tensor]:
    return random_state(ModelSpec("test_convnext", 3))


def save_as_timm(folder: Path, **arguments: Any) -> Path:
    """Write the checkpoint that timm's training script would."""
    model = network(arguments.get("in_chans") or 3)
    saver: Any = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        argparse.Namespace(**{**TIMM, **arguments}),
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(3, 0.5)
    return folder / "last.pth.tar"


def save(folder: Path, **content: Any) -> Path:
    torch.save({"state_dict": native(), **content}, folder / "best.ckpt")
    return folder / "best.ckpt"


def note(artifact: Artifact) -> str:
    return artifact.notes[-1].partition(": evaluated at ")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"img_size": 64},
        {"input_size": [3, 96, 96], "crop_pct": 1.0, "interpolation": "bilinear"},
        {"img_size": 64, "crop_pct": 0.9, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_mode": "squash"},
        {"img_size": 64, "interpolation": "lanczos", "mean": [0.3], "std": [0.2]},
        {"in_chans": 1},
        {"in_chans": 1, "img_size": 48, "mean": [0.3], "std": [0.2]},
    ],
    ids=["nothing", "size", "bilinear", "all", "one-number", "grey", "grey-told"],
)
def test_open_input_evaluates_as_the_training_script_of_timm_did(arguments: dict[str, Any], tmp_path: Path) -> None:
    artifact = open_input(save_as_timm(tmp_path, **arguments))
    expected = resolve_data_config({**TIMM, **arguments}, model=network(arguments.get("in_chans") or 3))
    channels, side, _ = expected["input_size"]
    channels = artifact.model.in_channels if channels == 3 else channels
    assert artifact.preprocess == Preprocess(
        side,
        expected["crop_pct"],
        expected["interpolation"],
        tuple(adapt_to_chs(expected["mean"], channels)),
        tuple(adapt_to_chs(expected["std"], channels)),
        expected["crop_mode"],
    )
    told = {field for field, origin in artifact.preprocess.origins.items() if origin == "from args in the file"}
    names = {"img_size": "image_size", "input_size": "image_size"}
    assert told == {names.get(name, name) for name in arguments if name != "in_chans"}


def test_the_note_names_every_value_and_where_it_came_from(tmp_path: Path) -> None:
    told = open_input(save_as_timm(tmp_path, img_size=64, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]))
    assert note(told) == (
        "64 pixels, center crop 0.95, bicubic, mean 0.1 0.2 0.3, std 0.4 0.5 0.6 (size, mean and std from args in the file; crop, "
        "crop mode and interpolation assumed: as published with test_convnext, because the file does not tell)"
    )


def test_the_note_does_not_call_untold_what_the_file_tells_and_nobody_takes(tmp_path: Path) -> None:
    artifact = open_input(save_as_timm(tmp_path, img_size=64, crop_mode="border"))
    assert any(
        "crop_mode 'border' from args in the file is not what this network can" in text for text in artifact.notes
    )
    assert artifact.preprocess.crop_mode == "center"
    assert artifact.preprocess.origins["crop_mode"] == (
        "assumed: as published with test_convnext, because what the file tells is not taken"
    )
    assert artifact.preprocess.origins["crop_pct"].endswith("because the file does not tell")
    assert "crop_mode" in assumed_fields(artifact.preprocess)


def test_a_size_too_small_for_the_network_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    path = save_as_timm(tmp_path, input_size=[3, 24, 32])
    with pytest.raises(ArtifactError, match=r"24×32 pixels \(from args in the file\), .* >= 32, with --image-size"):
        open_input(path)
    with pytest.raises(ArtifactError, match=r"--image-size 24x32 is too small for .*; expected >= 32\."):
        open_input(path, asked=PreprocessSettings(image_size=(24, 32)))
    assert open_input(path, asked=PreprocessSettings(image_size=64)).preprocess.image_size == 64


OFFICIAL = {"model": "test_convnext", "input_size": 64, "crop_pct": None, "imagenet_default_mean_and_std": True}


@pytest.mark.parametrize(
    ("content", "expected", "origin"),
    [
        (
            {"hyper_parameters": {"img_size": 64, "lr": 0.1}},
            Preprocess(64, 0.95, "bicubic", (0.5,) * 3, (0.5,) * 3),
            "",
        ),
        (
            {
                "hyper_parameters": {
                    "data": {"image_size": [64, 64], "mean": (0.1,) * 3, "std": (0.2,) * 3},
                    "crop_pct": 1,
                }
            },
            Preprocess(64, 1.0, "bicubic", (0.1,) * 3, (0.2,) * 3),
            "hyper_parameters in the file",
        ),
        (
            {"hyper_parameters": {"img_size": 64, "mean": [127.5, 127.5, 127.5], "std": [51.0, 51.0, 51.0]}},
            Preprocess(64, 0.95, "bicubic", (0.5,) * 3, (0.2,) * 3),
            "hyper_parameters in the file",
        ),
        (
            {"args": argparse.Namespace(val_crop_size=96, val_resize_size=128, interpolation="bilinear", model="x")},
            Preprocess(96, 0.75, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
            "args in the file",
        ),
        (
            {"args": argparse.Namespace(**OFFICIAL)},
            Preprocess(64, 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD),
            "args in the file",
        ),
        (
            {"args": argparse.Namespace(**{**OFFICIAL, "input_size": 384, "imagenet_default_mean_and_std": False})},
            Preprocess(384, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3, "squash"),
            "args in the file",
        ),
    ],
    ids=["lightning", "lightning-nested", "lightning-255", "torchvision", "official", "official-384"],
)
def test_open_input_reads_what_other_trainings_say(
    content: dict[str, Any], expected: Preprocess, origin: str, tmp_path: Path
) -> None:
    artifact = open_input(save(tmp_path, **content))
    assert artifact.preprocess == expected
    assert origin in note(artifact)


def test_open_input_reads_the_arguments_beside_a_file_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text(yaml.safe_dump({**TIMM, "img_size": 64, "crop_pct": 1.0}), encoding="utf-8")
    artifact = open_input(save(tmp_path))
    assert artifact.preprocess == Preprocess(64, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert "size and crop from args.yaml beside it;" in note(artifact)
    own = open_input(save(tmp_path, args={"img_size": 96}))
    assert own.preprocess.image_size == 96


@pytest.mark.parametrize("other", [{"model": "resnet50"}, {"model": "convnext_atto"}, {"num_classes": 1000}])
def test_open_input_leaves_the_arguments_of_another_network_alone(other: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text(yaml.safe_dump({**TIMM, "img_size": 64, **other}), encoding="utf-8")
    assert open_input(save(tmp_path)).preprocess == PUBLISHED


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"mean": [0.1, 0.2], "std": [0.1, 0.2]}, "mean [0.1, 0.2]"),
        ({"mean": [0.5], "std": ["wide"]}, "std ['wide']"),
        ({"crop_pct": 1.5}, "crop_pct 1.5"),
        ({"img_size": "large"}, "image_size 'large'"),
        ({"img_size": -3}, "image_size -3"),
        ({"img_size": [3, 10**9, 10**9]}, "image_size 1000000000"),
        ({"train": {"img_size": 64}, "validation": {"img_size": 96}}, "img_size"),
        ({"std": [0.1] * 3}, "std [0.1, 0.1, 0.1]"),
        ({"mean": [0.1] * 3}, "mean and std"),
    ],
)
def test_what_cannot_be_taken_is_said_and_assumed(told: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    artifact = open_input(save(tmp_path, hyper_parameters=told))
    assert artifact.preprocess == PUBLISHED
    reasons = [text for text in artifact.notes if "from hyper_parameters in the file" in text]
    assert any(text.startswith(f"best.ckpt: {said} from") for text in reasons) if said else not reasons


@pytest.mark.parametrize(
    ("text", "says"),
    [("img_size: [", "cannot be read as YAML"), ("a: !!python/object/apply:os.getpid []", "cannot be read as YAML")],
)
def test_damaged_arguments_beside_a_file_are_one_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"^[^\n]*args\.yaml {says}[^\n]*$"):
        open_input(save(tmp_path))


def test_images_that_are_not_square_are_read(tmp_path: Path) -> None:
    assert open_input(save(tmp_path, args={"input_size": [3, 64, 48]})).preprocess.sides == (64, 48)


def test_plain_ends_for_values_that_hold_themselves_and_drops_what_is_no_setting() -> None:
    endless: list[Any] = []
    endless += [endless] * 50
    assert len(str(plain(endless))) < 10_000_000
    found = plain({"a": 1, 2: "b", "c": [torch.ones(1), True], "d": argparse.Namespace(e=None)})
    assert found == {"a": 1, "c": [None, True], "d": {"e": None}}
