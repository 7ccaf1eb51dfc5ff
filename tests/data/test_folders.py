"""Layouts of image folders: splits and classes by other names, links, and folders without validation images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.data.datasets import Data, FolderImages, open_data
from convnext_deploy.data.splits import Split
from tests.conftest import CLASSES, write_image_folder
from tests.data.test_sources import refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small image folder of the test's own."""
    return write_image_folder(tmp_path / "images", train=3, validation=2)


def held_out(data: Data) -> set[str]:
    assert isinstance(data.validation, FolderImages)
    return {f"{path.parent.name}/{path.name}" for path in data.validation.paths}


@pytest.mark.parametrize("name", ["Val", "testing", "dev"])
def test_open_data_refuses_when_the_validation_folder_has_another_name(folder: Path, name: str) -> None:
    (folder / "val").rename(folder / name)
    assert (
        f"has no val/ (or validation/, valid/, test/); found {', '.join(sorted([name, 'train']))}. Rename {name}/ to val/"
        in (refusal(folder))
    )


@pytest.mark.parametrize("name", ["Train", "training"])
def test_open_data_does_not_take_splits_for_classes(folder: Path, name: str) -> None:
    (folder / "train").rename(folder / name)
    (folder / "val").rename(folder / "held-out")
    assert "has no train/; found" in refusal(folder)


def test_open_data_says_when_images_are_outside_of_class_folders(folder: Path) -> None:
    for index, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        path.rename(folder / "train" / f"{index}.png")
    assert "train has no images; expected one folder per class" in refusal(folder)
    assert "found 9 files outside of such folders" in refusal(folder)


def test_open_data_follows_links_but_not_in_circles(folder: Path) -> None:
    (folder / "val" / "cat").rename(folder.parent / "cats")
    (folder / "val" / "cat").symlink_to(folder.parent / "cats")
    shutil.copytree(folder / "train" / "dog", folder.parent / "more")
    (folder / "train" / "dog" / "more").symlink_to(folder.parent / "more")
    (folder / "train" / "dog" / "again").symlink_to(folder / "train" / "dog")
    data = open_data(str(folder))
    assert data.train.labels.tolist() == [0, 0, 0, *[1] * 6, 2, 2, 2]
    assert data.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_open_data_refuses_when_a_folder_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = folder / "train" / "dog" / "closed"
    closed.mkdir()
    scandir = os.scandir

    def guarded(path: Any = ".") -> Any:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert f"cannot be read ({closed}: Permission denied)" in refusal(folder)


@pytest.mark.parametrize(("name", "shown"), [(b"c\nt", r"c\nt"), (b"c\xfft", r"c\udcfft")])
def test_open_data_refuses_class_names_that_are_no_text(folder: Path, name: bytes, shown: str) -> None:
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / os.fsdecode(name))
    assert f"{folder / 'train'}/{shown} is not plain text; rename it" in refusal(folder)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An image folder of 10 images in each class, without validation images."""
    root = write_image_folder(tmp_path / "images", train=10, validation=1)
    shutil.rmtree(root / "val")
    return root


def test_open_data_holds_images_out_when_there_is_no_validation_folder(whole: Path) -> None:
    data = open_data(str(whole), validation_fraction=0.2)
    assert data.class_names == CLASSES
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert data.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.split == Split(0.2, 0)
    assert data.notes == (
        f"{whole} has no validation folder: 6 of 30 images, 20% of each class, are set aside to validate on (seed 0)",
    )
    default = open_data(str(whole))
    assert default.split == Split(0.1, 0)
    assert len(default.validation) == 3


def test_open_data_takes_class_folders_alone_and_splits_them_the_same(whole: Path) -> None:
    nested = open_data(str(whole))
    for path in (whole / "train").iterdir():
        path.rename(whole / path.name)
    (whole / "train").rmdir()
    (whole / "README.txt").write_text("about")
    (whole / ".cache").mkdir()
    direct = open_data(str(whole))
    assert direct.class_names == CLASSES
    assert held_out(direct) == held_out(nested)
    assert direct.ignored_files == 1
    assert len(direct.train) == 27


def test_a_validation_folder_is_never_mixed_with_training(whole: Path) -> None:
    shutil.copytree(whole / "train", whole / "test")
    data = open_data(str(whole), validation_fraction=0.5, split_seed=3)
    assert (len(data.train), len(data.validation), data.split) == (30, 30, None)
    assert data.notes[0] == f"{whole}: 30 images to train on from train/, 30 images to validate on from test/"
    assert data.notes[1].startswith("30 of the 30 images that judge are among the training images as well")


def test_fingerprint_changes_with_the_split_alone(whole: Path) -> None:
    def fingerprint(**settings: float) -> str:
        return open_data(str(whole), **settings).fingerprint  # type: ignore[arg-type]

    assert fingerprint() == fingerprint(validation_fraction=0.1, split_seed=0)
    assert len({fingerprint(), fingerprint(split_seed=1), fingerprint(validation_fraction=0.3)}) == 3
    assert fingerprint(validation_fraction=0.1) == fingerprint(validation_fraction=0.101)  # holds out the same images


def test_unreadable_images_take_no_place_in_the_split(whole: Path) -> None:
    for name in sorted(held_out(open_data(str(whole)))):
        (whole / "train" / name).write_bytes(b"broken")
    data = open_data(str(whole), skip_unreadable=True)
    assert (len(data.unreadable), len(data.train), len(data.validation)) == (3, 24, 3)
    assert data.notes[0] == "3 images that cannot be read were left out:"
    assert "3 of 27 images" in data.notes[-1]


def test_names_that_are_no_text_are_split(whole: Path) -> None:
    odd = whole / "train" / "cat" / os.fsdecode(b"\xff.png")
    (whole / "train" / "cat" / "0.png").rename(odd)
    data = open_data(str(whole), validation_fraction=0.5)
    assert isinstance(data.train, FolderImages)
    assert isinstance(data.validation, FolderImages)
    assert odd in (*data.train.paths, *data.validation.paths)
