"""Images that are not square, and graphs that take any size, from `validate` to engines and bundles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms.v2 import functional as TF

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.artifacts.spec import Preprocess, default_preprocess
from convnext_deploy.config.image_size import parse_size, plain_size, show_size, sides_of
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.records import read_record
from convnext_deploy.data.transforms import evaluation_transform
from convnext_deploy.errors import ArtifactError, DeployError, RecipeError
from convnext_deploy.graphs.onnx_view import open_view, shape_of
from convnext_deploy.pipeline.open_artifact import open_input
from tests.cli.conftest import call

HERE = ExecutionOptions(device="cpu", workers=0)
ROWS, COLUMNS = 32, 48


@pytest.fixture(autouse=True, scope="module")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


def write_graph(path: Path, *sides: int | str, layout: str = "nchw") -> Path:
    """Write a classifier of three classes: its pooled colours, in another order."""
    helper, tensor = onnx.helper, onnx.TensorProto
    shape = ["n", 3, *sides] if layout == "nchw" else ["n", *sides, 3]
    axes = [2, 3] if layout == "nchw" else [1, 2]
    order = np.eye(3, dtype=np.float32)[[2, 0, 1]]
    constants = {"v": order, "w": order.T @ order.T, "axes": np.array(axes, np.int64)}
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "v"], ["ordered"]),
        helper.make_node("MatMul", ["ordered", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", tensor.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", tensor.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("text", "size"),
    [("224", 224), ("32x48", (32, 48)), (" 32 × 48 ", (32, 48)), ("48X48", 48), ("x48", None), ("32x", None), ("-3", None)],
)  # fmt: skip
def test_sizes_in_words(text: str, size: int | tuple[int, int] | None) -> None:
    assert parse_size(text) == size
    if size is not None:
        assert parse_size(show_size(size)) == size


def test_sizes_have_one_form() -> None:
    assert (plain_size((32, 32)), sides_of(32), sides_of((32, 48))) == (32, (32, 32), (32, 48))
    assert default_preprocess((224, 224)) == default_preprocess(224)
    assert PreprocessSettings((48, 48)) == PreprocessSettings(48)
    table = json.loads(json.dumps(default_preprocess((ROWS, COLUMNS)).settings()))
    assert read_record(Preprocess, table, "preprocessing") == default_preprocess((ROWS, COLUMNS))
    for wrong in ([32], [32, 48, 3], [32, 0], [32, 99999], "32x48", 0):
        with pytest.raises((ValueError, DeployError)):
            read_record(Preprocess, {**table, "image_size": wrong}, "preprocessing")
    with pytest.raises(RecipeError, match=r"image_size = \(32, 0\) is out of range; expected 1 to 16384"):
        PreprocessSettings((32, 0))


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("source", [(100, 60), (60, 100), (48, 32), (50, 37)])
def test_transform_is_that_of_timm(source: tuple[int, int], crop_pct: float) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8))
    for size in ((ROWS, COLUMNS), (48, 32)):
        found = evaluation_transform(image, Preprocess(size, crop_pct, "bicubic", (0.5,) * 3, (0.5,) * 3))
        resized = ResizeKeepRatio([int(side / crop_pct) for side in size], interpolation="bicubic")(image)
        np.testing.assert_array_equal(found, np.asarray(TF.center_crop(resized, list(size))))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_graphs_of_a_fixed_size_go_everywhere(layout: str, image_folder: Path, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "r.onnx", ROWS, COLUMNS, layout=layout)
    report = api.validate(graph, data=DataOptions(image_folder), execution=HERE)
    assert (report.rows[0].accuracy is not None, open_input(graph).preprocess.image_size) == (True, (ROWS, COLUMNS))
    api.bundle(graph, out=tmp_path / "bundle", golden_images=3)
    assert api.verify_bundle(tmp_path / "bundle").passed
    found = api.predict(graph, [image_folder / "val" / "cat" / "0.png"], data=DataOptions(), execution=HERE)
    assert len(found) == 1
    with pytest.raises(ArtifactError, match=r"takes images of 32×48 pixels, not of 48×32; leave --image-size out"):
        open_input(graph, asked=PreprocessSettings((COLUMNS, ROWS)))


def test_graphs_of_any_size_are_given_one_once(tmp_path: Path, image_folder: Path) -> None:
    graph = write_graph(tmp_path / "d.onnx", "h", "w")
    with pytest.raises(ArtifactError, match=r"any size, .*; say with --image-size which .*, such as 224, or 32x48 for"):
        open_input(graph)
    asked = DataOptions(image_folder, image_size=(ROWS, COLUMNS))
    assert api.validate(graph, data=asked, execution=HERE).validation_images == 18
    api.bundle(graph, out=tmp_path / "bundle", golden_images=3, data=DataOptions(image_size=(ROWS, COLUMNS)))
    (copied,) = (tmp_path / "bundle" / "onnx").iterdir()
    assert shape_of(open_view(copied).inputs[0])[2:] == (ROWS, COLUMNS)
    assert api.verify_bundle(tmp_path / "bundle").passed
    half = write_graph(tmp_path / "half.onnx", ROWS, "w")
    assert open_input(half, asked=PreprocessSettings((ROWS, COLUMNS))).preprocess.sides == (ROWS, COLUMNS)
    with pytest.raises(ArtifactError, match=r"takes images of 32×any pixels, not of 48;"):
        open_input(half, asked=PreprocessSettings(48))


def test_an_engine_of_a_graph_of_any_size_remembers_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph = write_graph(tmp_path / "d.onnx", "h", "w")
    data = DataOptions(image_size=(ROWS, COLUMNS))
    api.export(graph, format="tensorrt-rtx", gpus=("sm89",), out=tmp_path / "out", data=data, execution=HERE)
    (folder,) = (tmp_path / "out" / "stages").iterdir()
    assert read_artifact(folder).preprocess.image_size == (ROWS, COLUMNS)


@pytest.mark.heavy
def test_a_network_is_trained_quantized_exported_and_bundled(image_folder: Path, tmp_path: Path) -> None:
    data = DataOptions(image_folder, image_size=(ROWS, COLUMNS))
    training = TrainingOptions(epochs=1, batch_size=12)
    api.train("test_convnext2", out=tmp_path / "a", data=data, training=training, execution=HERE)
    checkpoint, plain = tmp_path / "a" / "stages" / "model", DataOptions(image_folder)
    assert read_artifact(checkpoint).preprocess.image_size == (ROWS, COLUMNS)
    quantized = api.quantize(
        checkpoint, calibration_method="minmax", target="onnxruntime", out=tmp_path / "b", data=plain, execution=HERE
    )
    assert quantized.report.rows[-1].accuracy is not None
    exported = api.export(tmp_path / "b" / "stages" / "ptq", out=tmp_path / "c", data=plain, execution=HERE)
    assert exported.report.rows[-1].accuracy is not None
    graph = tmp_path / "c" / "stages" / "onnx"
    assert shape_of(open_view(graph / "model.onnx").inputs[0])[2:] == (ROWS, COLUMNS)
    api.bundle(graph, out=tmp_path / "bundle", golden_images=3)
    assert api.verify_bundle(tmp_path / "bundle").passed
    api.convert(checkpoint, "timm", tmp_path / "timm")
    assert open_input(tmp_path / "timm").preprocess.image_size == (ROWS, COLUMNS)


def test_the_command_line_takes_height_x_width(tmp_path: Path, image_folder: Path) -> None:
    graph = write_graph(tmp_path / "d.onnx", "h", "w")
    here = ("--data", image_folder, "--device", "cpu", "--workers", "0")
    assert "evaluated at 32×48 pixels" in call("validate", graph, "--image-size", "32x48", *here).err
    outcome = call("validate", graph, "--image-size", "32by48", *here)
    assert outcome.code == 2
    assert "expected such as 224, or 32x48 for 32 rows of 48" in outcome.err
