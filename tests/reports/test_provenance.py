"""What a manifest tells the report: settings, training, layers, and how the artifact is used."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.artifacts.artifact import Artifact, StageRecord
from convnext_deploy.artifacts.details import LayerEffect
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import ArrayImages, Data, open_data
from convnext_deploy.evaluation.flips import Flip
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.provenance import _place, read_history, read_provenance
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import Layer
from convnext_deploy.reports.thumbnails import MOST, SIDE, make_thumbnails
from tests.details import selection_of, torch_details
from tests.reports.conftest import INT8_ROW, change


def test_rows_of_a_run_tell_how_their_artifacts_were_made(small_run: RunResult) -> None:
    rows = {row.name: row for row in small_run.report.rows}
    assert [len(rows[name].history.epochs) for name in ("teacher", "student", "ptq", "qat", "onnx-fp32")] == [
        2,
        2,
        0,
        1,
        0,
    ]
    assert rows["qat"].history.epochs[0].keys() >= {"train_loss", "validation_top1", "learning_rate"}
    assert rows["student"].provenance.inputs == {"teacher": "teacher"}
    assert [step["kind"] for step in rows["onnx-int8"].provenance.lineage] == [
        "train",
        "distill",
        "ptq",
        "qat",
        "onnx",
    ][1:]
    assert rows["onnx-int8"].identity.file == "model.onnx"
    assert rows["onnx-int8"].provenance.graph is not None
    assert {row.identity.num_classes for row in rows.values()} == {3}
    assert small_run.report.class_names == ("cat", "dog", "owl")


def test_run_tells_the_recipe_that_made_it(
    small_run: RunResult, small_recipe: Recipe, small_data: Data, tmp_path: Path
) -> None:
    text = write_recipe(small_run.report)
    assert text is not None
    (tmp_path / "recipe.toml").write_text(text)
    assert load_recipe(tmp_path / "recipe.toml") == dataclasses.replace(small_recipe, data=small_data.name)


def test_layers_come_in_the_order_in_which_images_pass_them(small_artifacts: dict[str, Artifact]) -> None:
    layers = read_history(small_artifacts["ptq"], "ptq").layers
    names = [layer.name for layer in layers]
    assert names[:4] == ["downsample_layers.0.0", "stages.0.0.dwconv", "stages.0.0.pwconv1", "stages.0.0.pwconv2"]
    assert names[4] == "downsample_layers.1.1"
    assert names[-1] == "head"
    choices = {layer.name: layer.choice for layer in layers}
    assert (choices["head"], choices["stages.0.0.pwconv1"], choices["stages.0.0.pwconv2"]) == (
        "float",
        "int8",
        "int8-zero-point-shift",
    )
    assert {layer.name: layer.weights for layer in layers}["stages.0.0.pwconv1"] == 32 * 128


def test_layers_of_blocks_and_stages_come_in_their_order() -> None:
    parts = ("dwconv", "pwconv1", "pwconv2")
    ordered = [f"stages.{stage}.{block}.{part}" for stage in (0, 2) for block in (0, 2, 10) for part in parts]
    ordered = ["downsample_layers.0.0", *ordered[:9], "downsample_layers.2.1", *ordered[9:], "head"]
    found = sorted((Layer(name, "int8", 1) for name in sorted(ordered)), key=_place)
    assert [layer.name for layer in found] == ordered


def test_layers_have_what_quantize_measured(small_artifacts: dict[str, Artifact]) -> None:
    artifact = small_artifacts["quantize"]
    selection = dataclasses.replace(
        selection_of(artifact), effects=(LayerEffect("stages.0.0.pwconv1", 0.5, 0.25, 123),)
    )
    artifact = dataclasses.replace(artifact, details=dataclasses.replace(torch_details(artifact), selection=selection))
    measured = [layer for layer in read_history(artifact, "quantize").layers if layer.kl is not None]
    assert [(layer.name, layer.kl, layer.changed, layer.macs) for layer in measured] == [
        ("stages.0.0.pwconv1", 0.5, 0.25, 123)
    ]


@pytest.mark.parametrize("name", ["student", "onnx-fp32", "engine"])
def test_artifacts_without_quantizers_of_pytorch_have_no_layers(
    small_artifacts: dict[str, Artifact], name: str
) -> None:
    assert read_history(small_artifacts[name], "x").layers == ()


def test_history_of_a_training_is_in_the_report(small_artifacts: dict[str, Artifact]) -> None:
    found = read_history(small_artifacts["student"], "train").epochs
    assert found == torch_details(small_artifacts["student"]).history
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("weights", "path", "expected"),
    [
        ("timm/convnext_tiny.fb_in1k", "", "timm/convnext_tiny.fb_in1k"),
        ("hf-hub:some/one", "", "some/one"),
        ("ConvNeXt_Tiny_Weights.IMAGENET1K_V1", "", None),
        ("my/file.pth", "", None),
        (
            None,
            "/root/hub/models--timm--convnext_atto.d2_in1k/snapshots/0123/model.safetensors",
            "timm/convnext_atto.d2_in1k",
        ),
        (None, "/root/model.safetensors", None),
    ],
)
def test_base_model_is_the_repository_of_the_first_weights(
    small_artifacts: dict[str, Artifact], weights: str | None, path: str, expected: str | None
) -> None:
    first: StageRecord = dataclasses.replace(
        small_artifacts["student"].lineage[0],
        config={"model": {"name": "tiny", "weights": weights}},
        input_paths={"source": path} if path else {},
    )
    artifact = dataclasses.replace(small_artifacts["student"], lineage=(first,))
    assert read_provenance(artifact, "train").base_model == expected


def decode(uri: str) -> Image.Image:
    head, _, text = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_thumbnails_of_a_run_show_its_flipped_images(small_data: Data) -> None:
    row = change(INT8_ROW, flips=(Flip(4, "x", 0, 0, 1, "lost"), Flip(7, "y", 1, 1, 0, "lost")))
    made = make_thumbnails(small_data, row, known=("7",))
    assert list(made) == ["4"]
    expected = np.asarray(small_data.validation.load(4).convert("RGB"))
    assert np.array_equal(np.asarray(decode(made["4"]).convert("RGB")), expected)


@pytest.mark.parametrize("shape", [(500, 300, 3), (30, 900, 3), (97, 97)])
def test_thumbnails_are_small(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
    images = ArrayImages(pixels, np.zeros(1, np.int64))
    data = Data("x", images, images, ("a",))
    row = change(INT8_ROW, flips=(Flip(0, None, 0, 0, 1, "lost"),))
    image = decode(make_thumbnails(data, row)["0"])
    assert max(image.size) == SIDE
    assert image.mode == "RGB"


@pytest.mark.parametrize("side", [48, 300])
def test_thumbnails_of_a_report_stay_below_a_size_together(side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, side, side, 3), dtype=np.uint8)  # nothing packs worse
    images = ArrayImages(pixels, np.zeros(200, np.int64))
    row = change(INT8_ROW, flips=tuple(Flip(index, None, 0, 0, 1, "lost") for index in range(200)))
    made = make_thumbnails(Data("x", images, images, ("a",)), row, known=("7", "8"))
    assert len(made) == MOST - 2
    assert sum(map(len, made.values())) < 1_200_000


def test_thumbnails_of_the_built_in_digits_exist() -> None:
    row = change(INT8_ROW, flips=(Flip(3, None, 0, 0, 1, "lost"),))
    assert decode(make_thumbnails(open_data("digits"), row)["3"]).size == (32, 32)


def test_thumbnails_leave_out_what_cannot_be_read(tmp_path: Path, small_data: Data) -> None:
    row = change(INT8_ROW, flips=(Flip(0, None, 0, 0, 1, "lost"),))
    gone = dataclasses.replace(small_data.validation, paths=(tmp_path / "gone.png",))  # type: ignore[type-var]
    assert make_thumbnails(dataclasses.replace(small_data, validation=gone), row) == {}
    assert make_thumbnails(None, row) == {}
