"""Validation images that a network may have been trained on are not called held out, and a test is scored once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DataError
from convnext_deploy.pipeline.assumptions import find_assumptions
from convnext_deploy.reports.record import read_report
from tests.colours import COUNT, save_colours, write_colours
from tests.rows import accuracy_of

NAMES = tuple("abcdefghij"[:COUNT])
HERE = ExecutionOptions(device="cpu", workers=0)


@pytest.fixture(autouse=True, scope="module")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


def test_a_part_of_the_folder_may_have_been_trained_on_elsewhere(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "photos", NAMES, {"": 4})
    path, out = save_colours(tmp_path / "best.pth"), tmp_path / "run"
    data = DataOptions(folder, image_size=32, crop_pct=1.0)
    report = api.validate(path, out=out, data=data, execution=HERE)
    assert any(f"the 10 validation images were taken here from {folder}" in text for text in report.assumptions)
    card, page = (out / "model_card.md").read_text(), (out / "report.md").read_text()
    assert "on 10 validation images, which it may have been trained on;" in card
    assert "not trained on" not in card
    assert "held out" not in card + page
    assert "the network may have been trained on them" in page
    lists = tmp_path / "val.txt"
    lists.write_text("\n".join(f"{name}/0.png" for name in NAMES))
    named = api.validate(path, data=DataOptions(folder, image_size=32, crop_pct=1.0, split=lists), execution=HERE)
    assert named.images == "which the data sets apart from those to train on"
    assert not any("may have been trained" in text for text in named.assumptions)


def test_what_was_trained_here_has_not_seen_them(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "photos", NAMES, {"train": 4})
    data = DataOptions(folder, image_size=32, groups=r"(\d)\.png")
    training = TrainingOptions(epochs=1, batch_size=10)
    model = tmp_path / "run" / "stages" / "model"
    report = api.train("test_convnext", out=tmp_path / "run", data=data, training=training, execution=HERE).report
    assert report.images == "which were not trained on"
    assert accuracy_of(report.rows[0]).total == 10
    assert api.validate(model, data=data, execution=HERE).images == "which were not trained on"
    moved = DataOptions(shutil.copytree(folder, tmp_path / "elsewhere"), groups=r"(\d)\.png")
    assert api.validate(model, data=moved, execution=HERE).images == "which were not trained on"  # the same images
    with pytest.raises(
        DataError, match=r"divided by --validation-fraction 0\.1 --groups .*; use --validation-fraction"
    ):
        api.validate(model, data=DataOptions(folder), execution=HERE)
    other = tmp_path / "elsewhere" / "train" / "a" / "new.png"
    shutil.copy(folder / "train" / "a" / "0.png", other.with_name("4.png"))
    changed = api.validate(model, data=DataOptions(moved.data, validation_fraction=0.5), execution=HERE)
    assert changed.images == "which it may have been trained on"


def test_the_test_is_scored_once_at_the_end(tmp_path: Path) -> None:
    folder = write_colours(tmp_path / "photos", NAMES, {"train": 3, "val": 2, "test": 1})
    for place in (folder / "test" / "a", folder / "test" / "b"):  # two wrong labels
        (place / "0.png").rename(place / "1.png")
    (folder / "test" / "a" / "1.png").rename(folder / "test" / "b" / "0.png")
    (folder / "test" / "b" / "1.png").rename(folder / "test" / "a" / "0.png")
    path, out = save_colours(tmp_path / "best.pth"), tmp_path / "run"
    report = api.quantize(
        path, calibration_method="minmax", calibration_images=20, out=out,
        data=DataOptions(folder, image_size=32, crop_pct=1.0), execution=HERE,
    ).report  # fmt: skip
    assert report.test is not None
    assert (report.test.name, report.test.total, report.test.baseline) == ("ptq", 10, "source")
    assert (report.test.top1, report.test.baseline_top1) == (0.8, 0.8)
    assert [accuracy_of(row).total for row in report.rows] == [20, 20]
    assert read_report(out) == report
    for name in ("report.md", "model_card.md"):
        assert "on the 10 test images, scored once at the end: ptq 80.00 %, source 80.00 %" in (out / name).read_text()


def test_what_was_only_quantized_here_may_have_been_trained_anywhere(
    small_artifacts: dict[str, Artifact], small_data: Data
) -> None:
    trained = small_artifacts["ptq"]
    assert find_assumptions([trained], small_data).images == "which were not trained on"
    elsewhere = dataclasses.replace(trained, lineage=trained.lineage[-1:])
    found = find_assumptions([elsewhere], small_data).images
    assert found in ("which it may have been trained on", "which the data sets apart from those to train on")
