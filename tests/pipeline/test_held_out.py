"""Images that a network was trained on are not taken to judge it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder
from tests.rows import accuracy_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder without validation images."""
    root = write_image_folder(tmp_path / "images", train=12, validation=1)
    shutil.rmtree(root / "val")
    return root


def test_validate_refuses_another_share_of_the_same_images(folder: Path, tmp_path: Path) -> None:
    data, here = DataOptions(folder, 0.25, image_size=32), ExecutionOptions(device="cpu", workers=0)
    training = TrainingOptions(epochs=1, batch_size=9)
    api.train("test_convnext", out=tmp_path / "run", data=data, training=training, execution=here)
    path = tmp_path / "run" / "stages" / "model"
    assert read_artifact(path).lineage[-1].validation_fraction == 0.25
    assert accuracy_of(api.validate(path, data=data, execution=here).rows[0]).total == 9
    other = dataclasses.replace(data, validation_fraction=0.5, data=folder / ".." / folder.name)
    with pytest.raises(
        DataError, match=r"with 0\.25 of .* held out, and now 0\.5 is.* use --validation-fraction 0\.25\.$"
    ):
        api.validate(path, data=other, execution=here)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")  # what these images are nobody can tell
    other = dataclasses.replace(other, data=elsewhere)
    assert accuracy_of(api.validate(path, data=other, execution=here).rows[0]).total == 18
