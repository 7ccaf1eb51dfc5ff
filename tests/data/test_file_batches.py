"""Files in batches: every readable one as evaluation sees it, every other one with its reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.image_folder import list_images
from convnext_deploy.data.prediction_batches import FileBatches
from convnext_deploy.data.transforms import normalize


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_what_evaluation_sees(small_data: Data, workers: int) -> None:
    images = small_data.validation
    assert isinstance(images, FolderImages)
    preprocess = default_preprocess(32)
    found = list(FileBatches(images.paths, preprocess, 5, workers))
    assert [len(batch.paths) for batch in found] == [5, 5, 5, 3]
    assert tuple(path for batch in found for path in batch.paths) == images.paths
    expected = torch.cat([batch for batch, _ in EvaluationBatches(images, preprocess, 18)])
    pixels = torch.from_numpy(np.concatenate([batch.pixels for batch in found]))
    assert pixels.dtype == torch.uint8
    assert torch.equal(normalize(pixels, preprocess), expected)
    assert not any(error for batch in found for error in batch.errors)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_file_is_told_in_its_place(small_data: Data, tmp_path: Path, workers: int) -> None:
    images = small_data.validation
    assert isinstance(images, FolderImages)
    (tmp_path / "broken.png").write_text("this is no image")
    paths = (images.paths[0], tmp_path / "broken.png", images.paths[1], tmp_path / "gone.png")
    mixed, none = FileBatches(paths, default_preprocess(32), 3, workers)
    assert [error is None for error in mixed.errors] == [True, False, True]
    assert mixed.pixels.shape == (2, 32, 32, 3)
    assert "broken.png cannot be read as an image (not an image)" in str(mixed.errors[1])
    assert none.pixels.shape == (0, 32, 32, 3)
    assert "gone.png cannot be read as an image (No such file or directory)" in str(none.errors[0])


def test_list_images_is_sorted_and_leaves_out_what_is_no_image_by_its_name(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/2.PNG", "a/1.png", "c.txt", ".hidden.png", ".thumbs/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["a/1.png", "a/2.PNG", "b.jpg"]
