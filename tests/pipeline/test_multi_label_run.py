"""Images with any number of labels, from a CSV to INT8: trained, quantized, exported, gated on mAP, and predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder

NAMES = ("red", "green", "blue")
RECIPE = """
name = "labels"
[[stages]]
kind = "train"
name = "model"
[stages.model]
name = "test_convnext2"
image_size = 32
[stages.fit]
epochs = 2
batch_size = 16
base_learning_rate = 0.256
warmup_epochs = 0
label_smoothing = 0.0
[[stages]]
kind = "quantize"
target = "onnxruntime"
method = "ptq"
max_drop_pp = 20.0
[[stages]]
kind = "onnx"
gate = { max_top1_drop_pp = 5.0 }
"""


def write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["filename,labels,split"]
    (root / "images").mkdir(parents=True)
    for number in range(160):
        has = rng.random(3) < [0.5, 0.4, 0.3]
        pixels = rng.integers(0, 120, (32, 32, 3)) + 120 * has
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{number}.png")
        rows.append(f"{number}.png,{' '.join(np.array(NAMES)[has])},{'val' if number % 4 == 0 else 'train'}")
    (root / "labels.csv").write_text("\n".join(rows))


@pytest.mark.heavy
def test_everything_is_scored_by_map(tmp_path: Path, short_timing: None) -> None:
    data, out, recipe = tmp_path / "data", tmp_path / "out", tmp_path / "recipe.toml"
    write_images(data)
    recipe.write_text(RECIPE)
    how = ExecutionOptions(workers=0, device="cpu")
    report = api.run(
        recipe, out=out, data=DataOptions(data), evaluation=EvaluationOptions(speed_check=False), execution=how
    ).report
    assert [row.accuracy and row.accuracy.metric for row in report.rows] == ["mAP"] * 3
    model, _, graph = report.rows
    assert model.accuracy is not None
    assert graph.accuracy is not None
    assert graph.accuracy.multi_label is not None
    assert model.accuracy.value > 0.9
    assert graph.accuracy.change is not None
    assert abs(graph.accuracy.change.drop_pp) < 5
    assert [each.label for each in graph.accuracy.multi_label.classes] == [0, 1, 2]
    assert "| mAP % |" in (out / "report.md").read_text()
    assert "multi-label image classifier" in (out / "model_card.md").read_text()
    found = api.predict(out / "stages" / "onnx", [data / "images" / "1.png"], execution=how)
    assert all(guess.probability >= 0.5 for guess in found[0].guesses)
    with pytest.raises(
        DataError, match=r"gives features, .* has any number of labels for an image; give folders of classes"
    ):
        api.export(
            out / "stages" / "model", output="features", out=tmp_path / "f", data=DataOptions(data), execution=how
        )
    elsewhere = (data / "labels.csv").rename(tmp_path / "mine.csv")
    images = DataOptions(data, labels=elsewhere)
    again = api.validate(out / "stages" / "onnx", data=images, execution=how)
    assert again.data_options == ("--labels", str(elsewhere))
    assert again.rows[0].accuracy is not None
    assert again.rows[0].accuracy.value == graph.accuracy.value
    folders = write_image_folder(tmp_path / "folders", NAMES, train=2, validation=2)
    with pytest.raises(DataError, match=r"any number of labels for an image, and .* has one class for each"):
        api.validate(out / "stages" / "onnx", data=DataOptions(folders), execution=how)
