"""Image folders and the built-in digits: what is found, what is refused and with which words."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.data.datasets import ArrayImages, Data, FolderImages, open_data
from convnext_deploy.errors import DataError
from tests.conftest import CLASSES, write_image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small image folder of the test's own."""
    return write_image_folder(tmp_path / "images", train=3, validation=2)


def refusal(path: Path) -> str:
    """Return the one line with which a data folder is refused."""
    with pytest.raises(DataError) as caught:
        open_data(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def files(data: Data) -> tuple[list[str], list[str]]:
    assert isinstance(data.train, FolderImages)
    assert isinstance(data.validation, FolderImages)
    return [path.name for path in data.train.paths], [path.name for path in data.validation.paths]


def test_open_data_finds_images_of_every_class_in_order(folder: Path) -> None:
    data = open_data(str(folder))
    assert data.class_names == CLASSES
    assert data.name == str(folder)
    assert files(data) == (["0.png", "1.png", "2.png"] * 3, ["0.png", "1.png"] * 3)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.ignored_files == 0
    assert isinstance(data.train, FolderImages)
    assert all(
        path.parent.name == CLASSES[label] for path, label in zip(data.train.paths, data.train.labels, strict=True)
    )


def test_open_data_reads_nested_folders_and_every_image_format(folder: Path) -> None:
    image = Image.open(folder / "train" / "cat" / "0.png")
    deep = folder / "train" / "cat" / "a" / "b"
    deep.mkdir(parents=True)
    for index, suffix in enumerate(
        (".jpg", ".JPEG", ".png", ".bmp", ".ppm", ".tif", ".TIFF", ".webp", ".gif", ".jfif")
    ):
        image.save(deep / f"{index}{suffix}")
    data = open_data(str(folder))
    assert len(data.train) == 9 + 10
    assert data.train.labels.tolist().count(0) == 3 + 10
    assert {data.train.load(index).convert("RGB").size for index in range(len(data.train))} == {(32, 32)}


@pytest.mark.parametrize(
    ("present", "used"),
    [
        (("val", "test"), "val"),
        (("validation", "test"), "validation"),
        (("test",), "test"),
        (("validation",), "validation"),
    ],
)
def test_open_data_prefers_val_then_validation_then_test(folder: Path, present: tuple[str, ...], used: str) -> None:
    (folder / "val").rename(folder / "kept")
    for name in present:
        shutil.copytree(folder / "kept", folder / name)
    data = open_data(str(folder))
    assert isinstance(data.validation, FolderImages)
    assert {path.parents[1].name for path in data.validation.paths} == {used}


def test_open_data_ignores_and_counts_files_that_are_no_images(folder: Path) -> None:
    for name in (
        "train/cat/Thumbs.db",
        "train/dog/notes.txt",
        "train/cat/._0.png",
        "val/owl/0.png.part",
        "train/loose.png",
    ):
        (folder / name).write_bytes(b"odd")
    data = open_data(str(folder))
    assert files(data) == (["0.png", "1.png", "2.png"] * 3, ["0.png", "1.png"] * 3)
    assert data.ignored_files == 5


@pytest.mark.parametrize("hidden", ["train/.cache", "val/.ipynb_checkpoints", "train/cat/.thumbnails"])
def test_open_data_ignores_hidden_folders(folder: Path, hidden: str) -> None:
    shutil.copytree(folder / "val" / "cat", folder / hidden)
    data = open_data(str(folder))
    assert data.class_names == CLASSES
    assert (len(data.train), len(data.validation)) == (9, 6)


def test_open_data_refuses_when_folder_is_missing(tmp_path: Path) -> None:
    message = refusal(tmp_path / "none")
    assert "does not exist" in message
    assert "train/ and val/" in message
    assert "'digits'" in message


def test_open_data_refuses_when_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(tmp_path / "file")


def test_open_data_refuses_when_folder_is_empty(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert "has no train/" in message
    assert "found nothing" in message


def test_open_data_refuses_when_there_is_a_validation_folder_alone(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    message = refusal(folder)
    assert "has no train/; found val." in message
    assert "or CLASS/*.jpg alone" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_open_data_refuses_when_a_split_has_no_images(folder: Path, split: str) -> None:
    for path in (folder / split).rglob("*.png"):
        path.rename(path.with_suffix(".txt"))
    message = refusal(folder)
    assert f"the class folder {folder / split / 'cat'} has no image that can be read" in message
    assert "files (.txt), such as" in message


@pytest.mark.parametrize(("lacking", "other"), [("train", "val"), ("val", "train")])
@pytest.mark.parametrize("how", ["no folder", "empty folder", "no image in it"])
def test_open_data_refuses_when_a_class_is_in_one_split_only(folder: Path, lacking: str, other: str, how: str) -> None:
    shutil.rmtree(folder / lacking / "dog")
    if how != "no folder":
        (folder / lacking / "dog").mkdir()
    if how == "no image in it":
        (folder / lacking / "dog" / "readme.txt").write_text("x")
    expected = {
        "no folder": f"class 'dog' has no images in {folder / lacking};",
        "empty folder": f"the class folder {folder / lacking / 'dog'} is empty; put images into it, or remove it",
        "no image in it": f"{folder / lacking / 'dog'} has no image that can be read: 1 files (.txt), such as readme.txt;",
    }
    assert expected[how] in refusal(folder)
    assert (folder / other / "dog").is_dir()


def test_open_data_refuses_when_there_is_one_class_only(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "one", classes=("cat",), train=2, validation=1)
    assert "has only the class 'cat'; at least 2 are needed" in refusal(folder)


def test_digits_are_32_pixel_rgb_images_with_540_held_out() -> None:
    data = open_data("digits")
    assert isinstance(data.train, ArrayImages)
    assert isinstance(data.validation, ArrayImages)
    assert data.train.arrays.shape == (1257, 32, 32, 3)
    assert data.validation.arrays.shape == (540, 32, 32, 3)
    assert data.train.arrays.dtype == np.uint8
    assert data.class_names == tuple("0123456789")
    assert data.validation.load(3).size == (32, 32)
    assert np.array_equal(np.asarray(data.validation.load(3)), data.validation.arrays[3])
    assert np.ptp(data.train.arrays, axis=-1).max() == 0
    assert (data.train.arrays.min(), data.train.arrays.max()) == (0, 255)
    for images in (data.train, data.validation):
        counts = np.bincount(images.labels, minlength=10)
        assert counts.min() > 0.8 * len(images) / 10


def test_digits_are_split_the_same_every_time() -> None:
    first, second = open_data("digits"), open_data("digits")
    assert first.fingerprint == second.fingerprint
    assert "".join(map(str, first.validation.labels[:20])) == "63994567537210390884"


def test_digits_held_out_are_not_in_train() -> None:
    data = open_data("digits")
    train = {data.train.content(index) for index in range(len(data.train))}
    assert not any(data.validation.content(index) in train for index in range(len(data.validation)))


def test_open_data_takes_a_folder_named_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "digits", train=2, validation=1)
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").class_names == CLASSES


def _add(folder: Path) -> None:
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "cat" / "9.png")


def _remove(folder: Path) -> None:
    (folder / "val" / "cat" / "0.png").unlink()


def _rename(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "00.png")


def _relabel(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "dog" / "00.png")


def _rename_class(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / "bat")


def _rewrite(folder: Path) -> None:
    path = folder / "val" / "dog" / "1.png"
    status = path.stat()
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue().ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert path.stat().st_size == status.st_size


@pytest.mark.parametrize("change", [_add, _remove, _rename, _relabel, _rename_class, _rewrite])
def test_fingerprint_changes_when_an_image_changes(folder: Path, change: Callable[[Path], None]) -> None:
    before = open_data(str(folder)).fingerprint
    assert open_data(str(folder)).fingerprint == before
    change(folder)
    assert open_data(str(folder)).fingerprint != before


def test_fingerprint_changes_when_an_array_or_label_changes() -> None:
    arrays, labels = np.zeros((4, 2, 2, 3), np.uint8), np.array([0, 1, 0, 1])
    images = ArrayImages(arrays, labels)
    other = arrays.copy()
    other[3, 1, 1, 2] = 1
    data = [
        Data("a", images, images, ("x", "y")),
        Data("a", images, ArrayImages(other, labels), ("x", "y")),
        Data("a", ArrayImages(arrays, labels[::-1].copy()), images, ("x", "y")),
        Data("a", images, images, ("x", "z")),
    ]
    assert len({d.fingerprint for d in data}) == 4
    assert Data("b", images, images, ("x", "y")).fingerprint == data[0].fingerprint
