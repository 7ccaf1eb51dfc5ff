"""Small images are decoded in the first pass of a run; later ones take them from memory, and get the very same pixels."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import Preprocess, default_preprocess
from convnext_deploy.data import kept_pixels
from convnext_deploy.data.datasets import Data, FolderImages, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder

SMALL = default_preprocess(24, 0.8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images", train=4, validation=6)


@pytest.fixture
def data(folder: Path) -> Data:
    return open_data(str(folder))


def all_of(data: Data, preprocess: Preprocess = SMALL, workers: int = 0) -> Tensor:
    return torch.cat([images for images, _ in EvaluationBatches(data.validation, preprocess, 5, workers)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_pass_reads_no_file(data: Data, folder: Path, workers: int) -> None:
    first = all_of(data, workers=workers)
    shutil.rmtree(folder)
    assert torch.equal(all_of(data, workers=workers), first)


def test_what_one_pass_has_left_out_the_next_one_reads(data: Data, folder: Path) -> None:
    expected = all_of(open_data(str(folder)))
    chosen = [9, 5, 7, 6, 8]  # the second batch of a whole pass, in another order
    part = torch.cat([images for images, _ in EvaluationBatches(data.validation, SMALL, 5, indices=chosen)])
    assert torch.equal(part, expected[chosen])
    assert isinstance(data.validation, FolderImages)
    for index in chosen:
        data.validation.paths[index].unlink()
    assert torch.equal(all_of(data), expected)


def test_normalization_shares_pixels_and_another_crop_does_not(data: Data, folder: Path) -> None:
    first = all_of(data)
    other = dataclasses.replace(SMALL, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    shutil.rmtree(folder)
    pixels = all_of(data, other)
    mean, std = (torch.tensor(each)[:, None, None] for each in (SMALL.mean, SMALL.std))
    assert torch.allclose((pixels / 255 - mean) / std, first, atol=1e-5)
    with pytest.raises(DataError):
        all_of(data, dataclasses.replace(SMALL, crop_pct=1.0))


def test_large_images_are_not_kept(data: Data, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of(data, default_preprocess(kept_pixels.LARGEST_SIDE + 1))
    monkeypatch.setattr(kept_pixels, "MOST_BYTES", 18 * 24 * 24 * 3 - 1)
    all_of(data)
    shutil.rmtree(folder)
    for preprocess in (default_preprocess(kept_pixels.LARGEST_SIDE + 1), SMALL):
        with pytest.raises(DataError):
            all_of(data, preprocess)


def test_no_more_is_kept_than_there_is_room_for(data: Data, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_pixels, "MOST_BYTES", 2 * 18 * 24 * 24 * 3 - 1)
    all_of(data)
    other = dataclasses.replace(SMALL, crop_pct=1.0)
    found = all_of(data, other)
    shutil.rmtree(folder)
    assert torch.equal(all_of(data, other), found)
    with pytest.raises(DataError):
        all_of(data)


def test_other_processes_get_no_pixels(data: Data, folder: Path) -> None:
    before = len(pickle.dumps(data.validation))
    all_of(data)
    sent = pickle.dumps(data.validation)
    assert len(sent) < before + 200
    shutil.rmtree(folder)
    with pytest.raises(DataError):
        list(EvaluationBatches(pickle.loads(sent), SMALL, 5))
