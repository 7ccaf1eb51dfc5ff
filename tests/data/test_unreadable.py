"""Images that cannot be read: found before any work, named, counted, and left out when that is asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import FolderImages, open_data
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder
from tests.images import read_image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images", train=3, validation=2)


def one_line(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def _misstate_chunk_length(content: bytes) -> bytes:
    start = content.index(b"IDAT") - 4
    return content[:start] + (10).to_bytes(4) + content[start + 4 :]


def write_noise(path: Path, damage: Callable[[bytes], bytes] = bytes) -> Path:
    Image.fromarray(NOISE).save(path)
    path.write_bytes(damage(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("x.png", _cut),
        ("x.png", _misstate_chunk_length),
        ("x.png", _flip_byte),
        ("x.jpg", _cut),
        ("x.webp", _cut),
        ("x.bmp", _cut),
        ("x.tif", _cut),
        ("x.gif", _cut),
        ("x.png", lambda _: b""),
        ("x.jpg", lambda _: b"not an image"),
        ("x.png", lambda content: content[:8]),
    ],
)
def test_load_refuses_when_image_is_damaged(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = write_noise(tmp_path / name)
    images = FolderImages((path,), np.zeros(1, np.int64))
    assert images.load(0).size == (40, 40)
    write_noise(path, damage)
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        images.load(0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_refuses_when_file_has_gone(folder: Path) -> None:
    data = open_data(str(folder))
    (folder / "train" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image \(No such file or directory\)"):
        data.train.load(0)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp", "x.bmp", "x.gif", "x.ppm"])
def test_damage_of_any_kind_ends_in_one_line(tmp_path: Path, name: str) -> None:
    content, rng = write_noise(tmp_path / name).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for position in rng.integers(0, min(len(content), 700), 4):
            damaged[position] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        found = Contents().find_unreadable([tmp_path / name])
        try:
            image, message = read_image(tmp_path / name), ""
        except DataError as error:
            image, message = None, str(error)
        assert message.isprintable()
        if image is None:
            refused += 1
        else:
            assert image.mode in ("L", "RGB")
            assert not found
    assert refused > 0


CUT_OR_FOREIGN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("x.png", lambda path: path.write_bytes(b""), "an empty file"),
    "text": ("x.jpg", lambda path: path.write_text("this is no image"), "not an image"),
    "header only": ("x.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "not an image"),
    "cut JPEG": ("x.jpg", lambda path: write_noise(path, _cut), "image file is truncated"),
    "last bytes of a JPEG": (
        "x.jpg",
        lambda path: write_noise(path, lambda content: content[:-200]),
        "image file is truncated",
    ),
    "cut PNG": ("x.png", lambda path: write_noise(path, _cut), "image file is truncated"),
    "cut WebP": ("x.webp", lambda path: write_noise(path, _cut), ""),
    "cut TIFF": ("x.tif", lambda path: write_noise(path, lambda content: content[:100]), ""),
    "dangling link": ("x.png", lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "link to itself": ("x.png", lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "pipe": ("x.png", lambda path: os.mkfifo(path), "not a regular file"),
    "grey of unknown range": (
        "x.tif",
        lambda path: Image.fromarray(np.full((4, 4), 300, np.float32)).save(path),
        "its grey values run from 300 to 300",
    ),
    "PostScript": (
        "x.jpg",
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "not an",
    ),
}


@pytest.mark.parametrize(("name", "write", "reason"), CUT_OR_FOREIGN.values(), ids=CUT_OR_FOREIGN)
@pytest.mark.parametrize("split", ["train", "val"])
def test_open_data_finds_unreadable_images(
    folder: Path, split: str, name: str, write: Callable[[Path], object], reason: str
) -> None:
    path = folder / split / "dog" / name
    write(path)
    message = one_line(folder)
    assert message.startswith(f"{path} cannot be read as an image ({reason}")
    assert message.endswith("; repair or remove it, or leave it out with --skip-unreadable.")
    data = open_data(str(folder), skip_unreadable=True)
    assert data.unreadable == (path,)
    assert (len(data.train), len(data.validation)) == (9, 6)
    assert data.notes == ("1 image that cannot be read was left out:", f"  {path}")


def test_open_data_names_the_first_and_counts_the_others(folder: Path) -> None:
    paths = [folder / place for place in ("train/cat/2.png", "train/owl/1.png", "val/dog/0.png")]
    for path in paths:
        path.write_bytes(b"broken")
    before = one_line(folder)
    assert before.startswith(
        f"{paths[0]} cannot be read as an image (not an image), and neither can 2 others; repair or "
    )
    assert before.endswith("remove them, or leave them out with --skip-unreadable.")
    data = open_data(str(folder), skip_unreadable=True)
    assert data.unreadable == tuple(paths)
    assert data.notes[0] == "3 images that cannot be read were left out:"
    assert data.notes[1:] == tuple(f"  {path}" for path in paths)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert data.validation.labels.tolist() == [0, 0, 1, 2, 2]


def test_skipping_changes_nothing_when_all_can_be_read(folder: Path) -> None:
    skipping, plain = open_data(str(folder), skip_unreadable=True), open_data(str(folder))
    assert skipping.fingerprint == plain.fingerprint
    assert skipping.notes == plain.notes == ()


def test_fingerprint_changes_when_an_image_is_skipped(folder: Path) -> None:
    before = open_data(str(folder)).fingerprint
    (folder / "train" / "cat" / "1.png").write_bytes(b"broken")
    assert open_data(str(folder), skip_unreadable=True).fingerprint != before


@pytest.mark.parametrize("split", ["train", "val"])
def test_open_data_refuses_when_a_class_has_no_readable_image(folder: Path, split: str) -> None:
    for path in (folder / split / "dog").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=f"no image of class 'dog' in {folder / split} can be read"):
        open_data(str(folder), skip_unreadable=True)


@pytest.mark.parametrize(("name", "shown"), [(b"a\nb.png", r"a\nb.png"), (b"a\xff.png", r"a\udcff.png")])
def test_odd_names_are_read_and_shown_in_one_line(folder: Path, name: bytes, shown: str) -> None:
    path = folder / "train" / "cat" / os.fsdecode(name)
    shutil.copy(folder / "val" / "cat" / "0.png", path)
    data = open_data(str(folder))
    assert len(data.train) == 10
    assert len(data.fingerprint) == 64
    path.write_bytes(b"broken")
    assert one_line(folder).startswith(f"{path.parent}/{shown} cannot be read")
    assert open_data(str(folder), skip_unreadable=True).notes[1] == f"  {path.parent}/{shown}"


def test_folder_named_like_an_image_is_searched(folder: Path) -> None:
    (folder / "train" / "cat").rename(folder / "old")
    (folder / "train" / "cat").mkdir()
    (folder / "old").rename(folder / "train" / "cat" / "x.jpg")
    assert open_data(str(folder)).train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_decompression_bomb_is_refused_and_a_large_image_is_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # images have 1024; Pillow warns up to twice the limit
    assert open_data(str(folder)).train.load(0).size == (32, 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "0.png cannot be read as an image (Image size (1024 pixels) exceeds limit" in one_line(folder)


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_bytes_after_the_image_do_no_harm(tmp_path: Path, name: str) -> None:
    path = write_noise(tmp_path / name, lambda content: content + bytes(10_000))
    assert Contents().find_unreadable([path]) == []


def test_damage_amid_the_pixels_is_found_on_loading(folder: Path) -> None:
    path = write_noise(folder / "train" / "cat" / "x.png", _flip_byte)
    data = open_data(str(folder))
    assert isinstance(data.train, FolderImages)
    with pytest.raises(
        DataError, match=r"x\.png cannot be read as an image .*; .* leave it out with --skip-unreadable\.$"
    ):
        data.train.load(data.train.paths.index(path))


def test_find_unreadable_keeps_the_order_of_many_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(700)]
    for index, path in enumerate(paths):
        path.write_bytes(b"" if index % 100 == 7 else b"broken") if index % 50 == 7 else path.symlink_to(paths[0])
    Image.fromarray(NOISE).save(tmp_path / "good.png")
    paths[0].unlink()
    paths[0].symlink_to(tmp_path / "good.png")
    expected = [(paths[index], "an empty file" if index % 100 == 7 else "not an image") for index in range(7, 700, 50)]
    assert Contents().find_unreadable(paths) == expected
