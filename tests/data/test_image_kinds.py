"""One list of what an image is, and class folders of which nothing can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from convnext_deploy.data.datasets import open_data
from convnext_deploy.data.image_folder import list_images
from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.errors import DataError
from tests.images import read_image

CONTENTS = {".pgm": "L", ".pbm": "1"}


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(str(path).encode())).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).convert(CONTENTS.get(path.suffix, "RGB")).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for index in range(4):
            write(tmp_path / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_every_extension_that_is_listed_is_read(extension: str, images: Path) -> None:
    if extension == ".avif" and "avif" not in features.get_supported():
        pytest.skip("this Pillow has no AVIF")
    for index in range(6):
        write(images / "third" / f"{index}{extension}")
    data = open_data(str(images))
    assert "third" in data.class_names
    assert data.ignored_files == 0
    assert [read_image(path).size for path in list_images(images / "third")] == [(9, 9)] * 6


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("IMG_1.HEIC", "IMG_2.heic"), "2 files (.heic), such as IMG_1.HEIC; convert them with 'heif-convert"),
        (("a.dng",), "1 files (.dng), such as a.dng; develop these raw photographs"),
        (("clip.mp4", "x.txt"), "2 files (.mp4, .txt), such as clip.mp4; take frames from these videos"),
        (("README",), "1 files (no ending), such as README; convert them, or move the folder away"),
        ((), "is empty; put images into it, or remove it if there is no such class"),
    ],
)
def test_a_class_folder_without_an_image_is_an_error(names: tuple[str, ...], said: str, images: Path) -> None:
    (images / "phone").mkdir()
    for name in names:
        (images / "phone" / name).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        open_data(str(images))
    message = str(caught.value)
    assert f"the class folder {images / 'phone'}" in message
    assert said in message
    assert "\n" not in message


def test_files_beside_images_that_hold_some_as_well_are_told_with_the_cure(images: Path) -> None:
    for name in ("IMG_1.HEIC", "IMG_2.heic", "clip.mp4", "notes.txt", "._IMG_3.heic"):
        (images / "cat" / name).write_bytes(b"x")
    data = open_data(str(images))
    assert data.ignored_files == 5
    heic, mp4, ignored, *_ = data.notes
    assert heic.startswith("2 files that end in .heic are not read: convert them with 'heif-convert")
    assert mp4.startswith("1 files that end in .mp4 are not read: take frames")
    assert ignored.startswith("5 files in")
