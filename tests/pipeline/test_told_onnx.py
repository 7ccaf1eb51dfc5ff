"""Names, sizes and normalization that other tools tell of an ONNX file: in its metadata, and in config files beside it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError, CheckpointError
from convnext_deploy.pipeline.open_artifact import open_input
from tests.pipeline.foreign_graphs import IMAGES, LOGITS, MEAN, POOL, SIDE, per_channel, write_graph

DYNAMIC = "float[n,3,h,w] images"
NAMES = ("owl", "cat", "dog")


def write(path: Path, properties: dict[str, str], images: str = IMAGES) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_graph(path, LOGITS, images=images)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


def test_names_and_size_of_ultralytics_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", {"names": str(dict(enumerate(NAMES))), "imgsz": "[48, 48]"}, DYNAMIC)
    artifact = open_input(path)
    assert (artifact.class_names, artifact.preprocess.image_size) == (NAMES, 48)
    assert "a.onnx: names of the classes from the metadata in the file" in artifact.notes
    assert artifact.preprocess.origins["image_size"] == "from the metadata in the file"
    assert open_input(path, asked=PreprocessSettings(image_size=32)).preprocess.image_size == 32


def test_settings_in_json_are_read_and_what_does_not_fit_is_said(tmp_path: Path) -> None:
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "interpolation": "bilinear", "crop_pct": 0.8, "image_size": 99}
    artifact = open_input(write(tmp_path / "a.onnx", {"preprocess": json.dumps(told), "classes": '["a", "b"]'}))
    own = artifact.preprocess
    assert (own.mean, own.interpolation, own.crop_pct, own.image_size) == ((0.1, 0.2, 0.3), "bilinear", 0.8, SIDE)
    assert (
        "a.onnx: image_size 99 from the metadata in the file is not what the graph takes, 16, and is not taken"
        in artifact.notes
    )
    assert any("classes of the metadata in the file names 2 classes" in note for note in artifact.notes)


def test_what_the_graph_does_counts_more_than_its_metadata(tmp_path: Path) -> None:
    body = f"x = Sub (images, m) y = Div (x, s) {POOL.replace('(images)', '(y)')} logits = MatMul (f, w)"
    path = write_graph(tmp_path / "a.onnx", body, m=per_channel(255 * MEAN), s=per_channel(255 * MEAN))
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"})
    onnx.save(model, path)
    assert open_input(path).preprocess.mean == pytest.approx(MEAN, abs=1e-6)


@pytest.mark.parametrize("inner", [False, True])
def test_configs_of_transformers_beside_an_exported_file_are_read(tmp_path: Path, inner: bool) -> None:
    path = write(tmp_path / "onnx" / "model.onnx" if inner else tmp_path / "model.onnx", {}, DYNAMIC)
    labels = {str(number): name for number, name in enumerate(NAMES)}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": labels, "image_size": 224}))
    processor = {"size": {"height": 48, "width": 48}, "resample": 2, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    artifact = open_input(path)
    own = artifact.preprocess
    assert (artifact.class_names, own.image_size, own.crop_mode, own.interpolation) == (NAMES, 48, "squash", "bilinear")
    assert own.mean == pytest.approx((0.1,) * 3)
    assert own.origins["mean"] == "from preprocessor_config.json beside it"
    other = write(tmp_path / "other.onnx", {})  # a file of a name of its own may be of another network
    assert (open_input(other).class_names, open_input(other).preprocess.mean) == (None, (0.485, 0.456, 0.406))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": "big"}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is damaged"):
        open_input(path)


def test_config_that_says_multi_label_beside_an_exported_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", {})
    for problem, expected in (("multi_label_classification", True), ("single_label_classification", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "problem_type": problem}))
        artifact = open_input(path)
        assert artifact.model.multi_label is expected
        assert any("each output is a label of its own" in note for note in artifact.notes) is expected


def test_size_is_asked_for_where_nothing_tells_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="takes images of any size"):
        open_input(write(tmp_path / "a.onnx", {"imgsz": "large"}, DYNAMIC))
