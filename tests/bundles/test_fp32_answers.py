"""A device compares its answers with those of the FP32 network, whatever numbers the data gives the classes."""

from __future__ import annotations

from pathlib import Path

import pytest

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.bundles.device.verify import score
from convnext_deploy.config.choices import Dialect
from tests.colours import COUNT, save_colours, write_colours

NUMBERS = tuple(str(number) for number in range(1, COUNT + 1))


@pytest.mark.parametrize(
    ("dialect", "exported_with", "bundled_with"),
    [
        (
            "timm",
            None,
            None,
        ),  # the network's classes are in timm's natural order, the folders in that of their characters
        ("timm", NUMBERS, None),
        ("facebook", None, NUMBERS),  # the run took the classes for others, and the bundle is told which they are
    ],
)
def test_classes_that_the_network_numbers_otherwise_than_the_data(
    dialect: Dialect,
    exported_with: tuple[str, ...] | None,
    bundled_with: tuple[str, ...] | None,
    tmp_path: Path,
    short_timing: None,
) -> None:
    photos = write_colours(tmp_path / "photos", NUMBERS, {"train": 2, "val": 3})
    here = ExecutionOptions(device="cpu", workers=0)
    weights = save_colours(tmp_path / "weights.pth", dialect)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(NUMBERS))
    files = {None: None, NUMBERS: classes}
    images = DataOptions(photos, image_size=32, crop_pct=1.0, classes=files[exported_with])
    api.export(weights, out=tmp_path / "run", data=images, execution=here)
    images = DataOptions(photos, classes=files[bundled_with])
    made = api.bundle(tmp_path / "run" / "stages" / "onnx", tmp_path / "bundle", data=images)
    assert not any("no FP32 answers" in note for note in made.notes)
    checks, (found,) = score(made.path, None, photos / "val")
    assert not any(check.status == "failed" for check in checks)
    assert (found["images"], found["top1"], found["fp32_top1"], found["agreement"]) == (3 * COUNT, 1.0, 1.0, 1.0)
