"""What the image processors of transformers make of an image, read from the configs that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitImageProcessor, ViTImageProcessor

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.hub_config import HubConfig, read_hub_config
from tests.data.test_transforms import picture

NAMES = {"id2label": {"0": "cat", "1": "dog", "2": "owl"}}
PROCESSOR = {"size": {"shortest_edge": 64}, "crop_pct": 0.8, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}


def read(folder: Path, processor: dict[str, Any] | None, channels: int = 3, **config: Any) -> HubConfig:
    (folder / "config.json").write_text(json.dumps({"model_type": "convnext", **NAMES, **config}), encoding="utf-8")
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    found = read_hub_config(folder, ModelSpec("convnext_atto", 3, channels))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (BitImageProcessor(size={"shortest_edge": 72}, crop_size=64), (64, 64 / 72, "center")),
        (BitImageProcessor(size={"height": 72, "width": 72}, crop_size=64, resample=2), (64, 64 / 72, "squash")),
        (ViTImageProcessor(size={"height": 64, "width": 64}), (64, 1.0, "squash")),
    ],
    ids=["crop", "squash-and-crop", "vit"],
)
def test_processors_with_a_crop_of_their_own_make_the_same_pixels(
    processor: Any, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    found = read(tmp_path, None).preprocess
    assert found is not None
    assert (found.image_size, found.crop_pct, found.crop_mode) == expected
    theirs = processor(images=picture(330, 220), return_tensors="pt")["pixel_values"]
    own = normalize(torch.from_numpy(evaluation_transform(picture(330, 220), found).copy())[None], found)
    level = 1 / (255 * torch.tensor(found.std)[:, None, None])  # Pillow and torchvision round differently
    assert ((theirs - own).abs() / level).max() <= 4.01


def test_what_cannot_be_taken_is_said(tmp_path: Path) -> None:
    grey = read(tmp_path, PROCESSOR, channels=1)
    assert grey.preprocess is None
    assert grey.told == {"image_size": 64, "crop_pct": 0.8, "crop_mode": "center", "interpolation": "bicubic"}
    assert grey.remarks == (
        "preprocessor_config.json has mean and std for 3 channels, and the network takes 1: they are not taken",
    )
    as_it_is = read(tmp_path, {**PROCESSOR, "do_resize": False})
    assert as_it_is.remarks[0].startswith("preprocessor_config.json leaves images in their own size (do_resize false)")
    with pytest.raises(CheckpointError, match="crops 64 pixels out of 32; expected a crop within the image"):
        read(tmp_path, {"size": {"shortest_edge": 32}, "crop_size": 64})


def test_defaults_and_files_of_transformers_are_found(tmp_path: Path) -> None:
    short = {name: value for name, value in PROCESSOR.items() if not name.startswith("image_")}
    assert read(tmp_path, short).preprocess == Preprocess(64, 0.8, "bicubic", (0.5,) * 3, (0.5,) * 3)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSOR}), encoding="utf-8")
    found = read(tmp_path, None).preprocess
    assert found is not None
    assert found.mean == pytest.approx((0.1,) * 3)


@pytest.mark.parametrize(
    ("config", "names", "said"),
    [
        ({"id2label": None, "label2id": {"owl": 2, "cat": 0, "dog": 1}}, ("cat", "dog", "owl"), ()),
        (
            {"id2label": {"0": "cat", "1": "dog"}},
            None,
            ("config.json names 2 classes, and the network has 3: they are not taken",),
        ),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, None, ()),
    ],
    ids=["label2id", "too-few", "own-numbers"],
)
def test_names_are_taken_or_it_is_said_why_not(
    config: dict[str, Any], names: tuple[str, ...] | None, said: tuple[str, ...], tmp_path: Path
) -> None:
    found = read(tmp_path, PROCESSOR, **config)
    assert (found.class_names, found.remarks) == (names, said)
