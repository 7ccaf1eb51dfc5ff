"""`convert`: evaluation settings reach the other library, and what cannot be written is refused without a trace."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor
from transformers import AutoImageProcessor

from convnext_deploy.api.convert import convert
from convnext_deploy.api.options import DataOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from convnext_deploy.config.choices import Dialect
from convnext_deploy.data.transforms import evaluation_transform, normalize
from convnext_deploy.errors import ArtifactError, CheckpointError, DeployError, OutputError
from convnext_deploy.models.variants import build_model
from convnext_deploy.pipeline.open_artifact import open_input
from tests.data.test_transforms import picture
from tests.shared import heavy_except
from tests.weights import PREPROCESS, random_network, write_weights

ATTO = ModelSpec("convnext_atto", 3)
SMALL = ModelSpec("test_convnext", 3)


def write_atto(tmp_path: Path, preprocess: Preprocess = PREPROCESS, spec: ModelSpec = ATTO) -> Path:
    return write_weights(tmp_path / "source.safetensors", spec, ("cat", "dog", "owl"), preprocess)


def own_input(preprocess: Preprocess, width: int, height: int) -> Tensor:
    pixels = evaluation_transform(picture(width, height), preprocess)
    return normalize(torch.from_numpy(np.array(pixels))[None], preprocess)


IMAGENET = Preprocess(224, 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
SQUASH_384 = dataclasses.replace(IMAGENET, image_size=384, crop_pct=1.0, crop_mode="squash")
# torchvision's tiny network is resized to 236 pixels
UNEVEN = dataclasses.replace(IMAGENET, crop_pct=224 / 236)


@pytest.mark.parametrize(
    "preprocess", [PREPROCESS, IMAGENET, SQUASH_384, UNEVEN], ids=["own", "imagenet", "squash", "236"]
)
@pytest.mark.parametrize("size", heavy_except(((300, 480),), ((500, 375), (300, 480), (260, 260))))
def test_convert_gives_transformers_the_same_input(
    preprocess: Preprocess, size: tuple[int, int], tmp_path: Path
) -> None:
    result = convert(write_atto(tmp_path, preprocess), "huggingface", tmp_path / "out")
    assert result.notes == ()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    found = processor(images=picture(*size), return_tensors="pt")["pixel_values"]
    own = own_input(preprocess, *size)
    assert found.shape == own.shape
    # Pillow and torchvision round the weights of a resize and its result differently, by a few levels of 255
    difference = (found - own).abs() * torch.tensor(preprocess.std)[:, None, None] * 255
    assert difference.max() <= 4.01
    assert difference.mean() <= 0.3


@pytest.mark.parametrize(
    "preprocess", [PREPROCESS, IMAGENET, SQUASH_384, UNEVEN], ids=["own", "imagenet", "squash", "236"]
)
@pytest.mark.parametrize("size", heavy_except(((300, 480),), ((500, 375), (300, 480), (260, 260))))
def test_convert_gives_timm_the_same_input(
    preprocess: Preprocess, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(write_atto(tmp_path, preprocess, SMALL), "timm", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    settings = resolve_model_data_config(timm.create_model("local-dir:.", pretrained=True))
    found = create_transform(**settings, is_training=False)(picture(*size))[None]
    torch.testing.assert_close(found, own_input(preprocess, *size), rtol=0, atol=1e-5)


def test_convert_gives_the_other_libraries_the_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_atto(tmp_path)
    convert(source, "huggingface", tmp_path / "huggingface")
    convert(source, "timm", tmp_path / "timm")
    config = json.loads((tmp_path / "huggingface" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}
    assert config["label2id"] == {"cat": 0, "dog": 1, "owl": 2}
    monkeypatch.chdir(tmp_path / "timm")
    model: Any = timm.create_model("local-dir:.", pretrained=True)
    assert (model.num_classes, model.pretrained_cfg["label_names"]) == (3, ["cat", "dog", "owl"])


def test_convert_writes_no_class_names_when_there_are_none(tmp_path: Path) -> None:
    for dialect in ("timm", "huggingface"):
        out = tmp_path / dialect
        convert(write_weights(tmp_path / "bare.safetensors", ATTO), dialect, out)
        assert not (out / "class_names.txt").exists()
        assert open_input(out).class_names is None


def test_convert_writes_the_image_size_and_crop_that_were_asked_for(tmp_path: Path) -> None:
    source, data = write_atto(tmp_path), DataOptions(image_size=96, crop_pct=0.75)
    for dialect in ("timm", "huggingface"):
        convert(source, dialect, tmp_path / dialect, data=data)
        expected = dataclasses.replace(PREPROCESS, image_size=96, crop_pct=0.75)
        assert open_input(tmp_path / dialect).preprocess == expected


@pytest.mark.parametrize(
    ("preprocess", "how"),
    [
        (
            dataclasses.replace(IMAGENET, image_size=384, crop_pct=1.0),
            "resizes both sides without a crop at 384 pixels",
        ),
        (dataclasses.replace(SQUASH_384, crop_pct=0.9), "resizes both sides without a crop at 384 pixels"),
        (dataclasses.replace(IMAGENET, crop_mode="squash"), "resizes the shorter side and crops at 224 pixels"),
    ],
    ids=["centre-384", "squash-crop", "squash-224"],
)
def test_convert_says_when_transformers_will_see_other_pixels(preprocess: Preprocess, how: str, tmp_path: Path) -> None:
    result = convert(write_atto(tmp_path, preprocess), "huggingface", tmp_path / "out")
    (note,) = result.notes
    assert note == f"transformers {how}, unlike this artifact's own evaluation"
    assert f"Note: {note}." in (tmp_path / "out" / "README.md").read_text()
    assert convert(tmp_path / "source.safetensors", "timm", tmp_path / "timm").notes == ()


@pytest.mark.parametrize("dialect", ["timm", "facebook", "torchvision"])
def test_convert_says_when_the_last_norm_changes(dialect: Dialect, tmp_path: Path) -> None:
    spec = dataclasses.replace(ATTO, head_norm_eps=1e-12)
    result = convert(write_atto(tmp_path, spec=spec), dialect, tmp_path / "out")
    assert result.notes == (f"the last norm's eps 1e-12 becomes 1e-06, because {dialect} has one for all norms",)
    assert f"Note: {result.notes[0]}." in (tmp_path / "out" / "README.md").read_text()


REFUSED: list[tuple[Dialect, ModelSpec, str]] = [
    ("torchvision", ModelSpec("convnextv2_atto", 3), "ConvNeXt v2"),
    ("torchvision", ModelSpec("convnext_atto", 3, in_channels=1), "1 input channels"),
    ("torchvision", ModelSpec("convnext_atto", 3, patch_size=8), "a patch size of 8"),
    ("torchvision", ModelSpec("convnext_atto_ols", 3), "overlapping stems"),
    ("torchvision", ModelSpec("test_convnext", 3), "norms with eps 1e-05"),
    ("facebook", ModelSpec("convnext_atto", 3, patch_size=2), "a patch size of 2"),
    ("facebook", ModelSpec("convnext_atto", 3, activation="silu"), "the activation silu"),
    ("facebook", ModelSpec("convnext_zepto_rms", 3), "a simplenorm"),
    ("facebook", ModelSpec("convnext_atto", 3, head_hidden_size=8), "a hidden layer in the head"),
    ("huggingface", ModelSpec("convnext_atto_rms", 3), "a rmsnorm"),
    ("huggingface", ModelSpec("convnext_atto", 3, norm_eps=1e-5), "norms with eps 1e-05"),
    ("huggingface", ModelSpec("test_convnext3", 3), ""),
    ("timm", ModelSpec("convnext_atto", 3, patch_size=2), "a patch size of 2"),
    # its strides end at 32: from there on it dilates, so the last model stage would see twice the pixels
    ("timm", ModelSpec("convnext_atto", 3, patch_size=8), "a patch size of 8"),
    ("timm", ModelSpec("convnext_atto", 3, head_hidden_size=8, head_activation="relu"), "a relu in the head"),
]


@pytest.mark.parametrize(("dialect", "spec", "lacking"), REFUSED, ids=[f"{d}-{lacking}" for d, _, lacking in REFUSED])
def test_convert_refuses_when_the_library_has_no_such_network(
    dialect: Dialect, spec: ModelSpec, lacking: str, tmp_path: Path
) -> None:
    source = write_weights(tmp_path / "source.safetensors", spec)
    with pytest.raises(CheckpointError) as error:
        convert(source, dialect, tmp_path / "out")
    start = f"{spec.variant} cannot be written for {dialect}, whose ConvNeXt lacks {lacking}"
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_convert_refuses_when_the_weights_have_neither_head_nor_last_norm(tmp_path: Path) -> None:
    state = {
        key: value for key, value in build_model(ATTO).state_dict().items() if not key.startswith(("head", "norm."))
    }
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="neither a head nor the norm before it"):
        convert(tmp_path / "backbone.pth", "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ptq", "qat", "onnx-fp32", "onnx-int8", "engine"])
def test_convert_refuses_when_the_artifact_is_quantized_or_no_pytorch_file(
    small_artifacts: dict[str, Artifact], name: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ArtifactError, match="other libraries take FP32 weights: convert the artifact that it was made from"
    ):
        convert(small_artifacts[name].path, "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_convert_refuses_when_the_weights_are_not_finite(tmp_path: Path) -> None:
    state = random_network(SMALL).state_dict()
    state["head.bias"][0] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"'head\.bias' holds values that are not finite"):
        convert(tmp_path / "w.pth", "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_convert_writes_into_the_same_folder_again(tmp_path: Path) -> None:
    source = write_atto(tmp_path)
    convert(source, "facebook", tmp_path / "out")
    result = convert(source, "huggingface", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(result.files)
    first = contents(tmp_path / "out")
    convert(source, "huggingface", tmp_path / "out")
    assert contents(tmp_path / "out") == first
    assert {path.name for path in tmp_path.iterdir()} == {"source.safetensors", "out"}


def fill_other(out: Path) -> None:
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "thesis.tex").write_text("mine")


def fill_folder(out: Path) -> None:
    (out / "photos").mkdir(parents=True)
    (out / "photos" / "cat.jpg").write_text("mine")


def fill_library(out: Path) -> None:
    """Put there what timm itself would: every name is one that `convert` writes too."""
    out.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (out / name).write_text("mine")


def make_file(out: Path) -> None:
    out.write_text("mine")


OUTPUTS: list[tuple[Callable[[Path], None], str]] = [
    (fill_other, "holds 'thesis.tex', which this command would delete"),
    (fill_folder, "holds 'photos', which this command would delete"),
    (fill_library, "which this command would delete"),
    (make_file, "is a file; give a folder with --out"),
]


@pytest.mark.parametrize(("fill", "message"), OUTPUTS, ids=["file", "folder", "library", "is-file"])
def test_convert_refuses_and_leaves_alone_when_the_folder_is_not_its_own(
    fill: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    source = write_atto(tmp_path)
    fill(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=message):
        convert(source, "timm", tmp_path / "out")
    assert contents(tmp_path) == before


def test_convert_refuses_when_its_source_lies_in_the_output_folder(tmp_path: Path) -> None:
    out = convert(write_atto(tmp_path), "timm", tmp_path / "out").path
    before = contents(out)
    for source in (out, out / "model.safetensors"):
        with pytest.raises(DeployError, match=r"^[^\n]+$"):
            convert(source, "facebook", out)
        assert contents(out) == before


@pytest.mark.parametrize("dialect", ["timm", "torchvision"])
def test_convert_leaves_the_earlier_result_alone_when_writing_fails(
    dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_atto(tmp_path)
    convert(source, "huggingface", tmp_path / "out")
    before = contents(tmp_path)

    def fail(content: object, target: Path | BinaryIO, **_: object) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"half")
        else:
            target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    for out in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(
            OutputError, match=r"/model\.\w+ cannot be written \(No space left[^\n]+it needs [\d,]+ bytes"
        ):
            convert(source, dialect, out)
        assert contents(tmp_path) == before
        assert not (tmp_path / "new").exists()
