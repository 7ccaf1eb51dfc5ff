"""What an ONNX file of another origin takes is read from it, asked for, or said: size, range of values, order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError, RecipeError
from convnext_deploy.pipeline.open_artifact import open_input
from tests.bundles.graphs import row_sum_graph, write_onnx_artifact
from tests.pipeline.foreign_graphs import LOGITS, MEAN, POOL, SIDE, STD, coloured_folder, per_channel, write_graph
from tests.rows import accuracy_of

SCALED = LOGITS.replace("(images)", "(scaled)")
CENTRED: dict[str, Any] = {"m": per_channel(255 * MEAN), "s": per_channel(255 * STD)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("colours"))


def top1(path: Path, folder: Path, **said: Any) -> float:
    return accuracy_of(api.validate(path, data=DataOptions(folder, **said)).rows[0]).value


@pytest.mark.parametrize(
    ("body", "tensors", "expected"),
    [
        (f"a = Sub (images, m) scaled = Div (a, s) {SCALED}", CENTRED, "float32-0-255"),
        (
            f"a = Mul (images, k) scaled = Add (a, t) {SCALED}",
            {"k": np.float32(1 / 127.5), "t": np.float32(-1)},
            "float32-0-255",
        ),
        (f"scaled = Sub (images, m) {SCALED}", {"m": per_channel(np.array([103.9, 116.8, 123.7]))}, "float32-0-255"),
        (f"scaled = Div (images, k) {SCALED}", {"k": np.float32(255)}, "float32-0-255"),
        (
            f"scaled = BatchNormalization (images, g, b, m, v) {SCALED}",
            {
                "g": np.ones(3, np.float32),
                "b": np.zeros(3, np.float32),
                "m": CENTRED["m"].ravel(),
                "v": CENTRED["s"].ravel() ** 2,
            },
            "float32-0-255",
        ),
        (
            f"a = Sub (images, m) scaled = Div (a, s) {SCALED}",
            {"m": per_channel(MEAN), "s": per_channel(STD)},
            "float32-0-1",
        ),
        (f"a = Mul (images, k) scaled = Sub (a, m) {SCALED}", {"k": np.float32(255), "m": CENTRED["m"]}, "float32-0-1"),
        (LOGITS, {}, "float32"),
        # a norm of normalized images, as some networks begin with
        (f"scaled = Div (images, s) {SCALED}", {"s": per_channel(np.array([0.9, 1.1, 1.0]))}, "float32"),
        # our own normalization undone, as before a quantizer of pixels
        (
            f"a = Mul (images, s) scaled = Add (a, m) {SCALED}",
            {"m": per_channel(MEAN), "s": per_channel(STD)},
            "float32",
        ),
    ],
    ids=[
        "mean-and-std",
        "tensorflow",
        "caffe",
        "rescaled",
        "batch-norm",
        "unit",
        "unit-times-255",
        "none",
        "norm",
        "undone",
    ],
)
def test_range_is_read_from_the_first_nodes(tmp_path: Path, body: str, tensors: dict[str, Any], expected: str) -> None:
    artifact = open_input(write_graph(tmp_path / "a.onnx", body, **tensors))
    assert artifact.io.input_type == expected
    reason = "an assumption" if expected == "float32" else "because its first nodes normalize them"
    assert reason in artifact.notes[1]


def test_pixels_with_the_normalization_inside_are_classified_right(tmp_path: Path, folder: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", f"a = Sub (images, m) scaled = Div (a, s) {SCALED}", **CENTRED)
    assert top1(path, folder) == 1.0
    assert top1(path, folder, input_range="normalized") == pytest.approx(1 / 3)  # what was assumed of every file


def test_normalization_folded_into_weights_is_said_with_input_range(tmp_path: Path, folder: Path) -> None:
    body = f"{POOL} logits = Gemm (f, w, b)"
    folded: dict[str, Any] = {
        "w": (np.diag(4 / (255 * STD))).astype(np.float32),
        "b": (-4 * MEAN / STD).astype(np.float32),
    }
    path = write_graph(tmp_path / "a.onnx", body, **folded)
    assert open_input(path).io.input_type == "float32"
    assert "--input-range says otherwise" in open_input(path).notes[1]
    assert top1(path, folder) == pytest.approx(1 / 3)
    assert top1(path, folder, input_range="0-255") == 1.0


def test_dynamic_size_is_asked_for_everywhere(tmp_path: Path, folder: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", LOGITS, images="float[n,3,h,w2] images")
    for call in (
        lambda: api.validate(path, data=DataOptions(folder)),
        lambda: api.bench([path]),
        lambda: api.bundle([path], tmp_path / "bundle"),
        lambda: api.predict(path, folder / "val"),
        lambda: api.export(path, format="tensorrt-rtx", out=tmp_path / "run", data=DataOptions(folder)),
    ):
        with pytest.raises(ArtifactError, match=r"images of any size, \(n, 3, h, w2\); say with --image-size"):
            call()
    assert top1(path, folder, image_size=SIDE) == 1.0
    assert open_input(path, asked=PreprocessSettings(image_size=24)).preprocess.image_size == 24
    assert "(size asked for;" in open_input(path, asked=PreprocessSettings(image_size=24)).notes[-1]


@pytest.mark.parametrize(
    ("images", "said", "text"),
    [
        ("float[n,3,32,48] images", 32, r"takes images of 32×48 pixels, not of 32; leave --image-size out"),
        ("float[n,3,32,48] images", (48, 32), r"takes images of 32×48 pixels, not of 48×32; leave --image-size out"),
        ("float[n,3,32,width] images", None, r"images of any size, \(n, 3, 32, width\)"),
        (
            "float[n,3,32,width] images",
            48,
            r"images of 32×any pixels, not of 48; give its fixed side and another, --image-size HEIGHTxWIDTH",
        ),
        ("float[n,3,0,32] images", None, r"takes images of 0×32 pixels; expected 1 to 16384"),
        ("float[n,3,-1,-1] images", None, r"takes images of any size, \(n, 3, \?, \?\); say with --image-size"),
        ("float[n,3,32,32] images", 48, r"images of 32×32 pixels, not of 48; leave --image-size out"),
        ("float[n,c,32,32] images", None, r"is not an image classifier: .*found 1 input\(s\), \(n, c, 32, 32\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, images: str, said: int | tuple[int, int] | None, text: str
) -> None:
    path = write_graph(tmp_path / "a.onnx", LOGITS, images=images)
    with pytest.raises(ArtifactError, match=text) as caught:
        open_input(path, asked=PreprocessSettings(image_size=said))
    assert "\n" not in str(caught.value)


def test_more_channels_than_any_camera_has_take_no_memory(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", LOGITS)
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 10**10
    onnx.save(proto, path)
    with pytest.raises(ArtifactError, match=r"is not an image classifier: .*\(n, 10000000000, 16, 16\)"):
        open_input(path)


def test_hints_are_for_files_of_others_alone(tmp_path: Path, folder: Path) -> None:
    own = write_onnx_artifact(tmp_path / "own", row_sum_graph()).path
    with pytest.raises(RecipeError, match="--output-name and --input-range are for ONNX files of another origin"):
        api.predict(own, str(folder), data=DataOptions(input_range="0-1"))
    pixels = write_graph(
        tmp_path / "b.onnx", f"images = Cast <to = 1> (raw) {LOGITS}", images=f"uint8[n,3,{SIDE},{SIDE}] raw"
    )
    assert open_input(pixels).io.input_type == "uint8"
    with pytest.raises(ArtifactError, match="takes pixels as uint8, 0 to 255; leave --input-range out"):
        open_input(pixels, asked=PreprocessSettings(input_range="0-1"))
    with pytest.raises(RecipeError, match=r"input_range = '0\.\.255'"):
        DataOptions(input_range="0..255")  # type: ignore[arg-type]


def test_notes_say_what_every_part_of_the_input_rests_on(tmp_path: Path) -> None:
    notes = open_input(write_graph(tmp_path / "a.onnx", LOGITS)).notes
    assert notes == (
        "a.onnx: 'logits' is taken for the logits of 3 classes",
        "a.onnx: takes normalized images, an assumption, because the file does not tell; --input-range says otherwise",
        "a.onnx: evaluated at 16 pixels, center crop 1, bicubic, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (size from the "
        "graph; crop, crop mode, interpolation, mean and std assumed: usual, because an ONNX file does not tell)",
    )
    body = f"a = Sub (images, m) scaled = Div (a, s) {SCALED}"
    found = open_input(write_graph(tmp_path / "b.onnx", body, **CENTRED))
    assert "std 0.229 0.224 0.225 (size, mean and std from the graph; crop" in found.notes[-1]
    assert np.allclose(found.preprocess.mean, MEAN)
