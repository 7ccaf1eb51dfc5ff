"""Crops of large JPEG files that are decoded at reduced size look like those of the full image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.data.crops import load_crop, reduction
from convnext_deploy.data.datasets import ArrayImages, FolderImages
from convnext_deploy.data.pixels import to_channels
from convnext_deploy.data.transforms import crop_image
from convnext_deploy.errors import DataError
from tests.data.test_orientation import stored_as
from tests.images import read_image

MEAN_DISTANCE, LARGEST_DISTANCE = 3, 16
"""Levels of 255 by which a pixel may differ on average and at most; a shift by half a pixel of the result costs 16 and 60."""


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """Return large and small waves, edges and a little noise, `(height, width, 3)`."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin(x / (9 + 3 * k)) + np.cos(y / (11 - 2 * k)) for k in range(3)], axis=2)
    blocks = ((x // 61 + y // 47) % 2)[..., None]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    pixels: NDArray[np.uint8] = (118 + 40 * waves + 50 * blocks + noise).clip(0, 255).astype(np.uint8)
    return pixels


def compare(path: Path, box: tuple[float, ...], size: Any, *, channels: int = 3, flip: bool = False) -> tuple[int, ...]:
    """Compare a crop with that of the full image, and return the size of the image that was decoded for it."""
    seen: list[tuple[int, int]] = []
    drawn = np.array(box)

    def draw(height: int, width: int) -> tuple[NDArray[np.float64], bool]:
        seen.append((height, width))
        return drawn, flip

    found = load_crop(FolderImages((path,), np.zeros(1, np.int64)), 0, channels, draw, size).astype(int)
    full = to_channels(read_image(path), channels)
    assert seen == [(full.height, full.width)]  # so that the random numbers are those of the full image
    distance = np.abs(found - crop_image(full, drawn, flip, size))
    assert distance.mean() <= MEAN_DISTANCE
    assert distance.max() <= LARGEST_DISTANCE
    return found.shape


PICTURE = scene(487, 651)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_crops_lie_where_those_of_the_full_image_do(tmp_path: Path, orientation: int) -> None:
    """No side is a multiple of 8, so that the last reduced pixel is a part of one, which comes first when turned."""
    path, exif = tmp_path / "x.jpg", Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored_as(PICTURE, orientation)).save(path, exif=exif, quality=92)
    for box, flip in (((0, 0, 487, 651), False), ((31.4, 53.7, 420.2, 401.9), True), ((87, 251, 400, 400), False)):
        assert compare(path, box, 48, flip=flip) == (48, 48, 3)  # an eighth
    assert compare(path, (10, 10, 300, 500), (64, 96)) == (64, 96, 3)  # a quarter, not square
    assert compare(path, (200, 300, 287, 351), (130, 140), flip=True) == (130, 140, 3)  # a half


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"subsampling": "4:2:0", "progressive": True}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"format": "MPO"}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_jpeg(tmp_path: Path, mode: str, options: dict[str, Any], channels: int) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(PICTURE).convert(mode).save(path, **{"format": "JPEG", "quality": 92, **options})
    assert compare(path, (20, 30, 440, 600), 96, channels=channels) == (96, 96, channels)


def test_the_box_keeps_at_least_the_pixels_of_the_result(tmp_path: Path) -> None:
    assert [reduction(side, side, 100) for side in (99, 199, 200, 399, 400, 799, 800, 9000)] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert reduction(800, 400, (100, 100)) == 4
    assert reduction(800, 400, (100, 50)) == 8
    Image.fromarray(PICTURE).save(tmp_path / "x.jpg")
    images = FolderImages((tmp_path / "x.jpg",), np.zeros(1, np.int64))
    box = np.array([40.0, 50.0, 399.0, 399.0])
    found = load_crop(images, 0, 3, lambda *_: (box, True), 200)
    assert np.array_equal(found, crop_image(images.load(0), box, True, 200))  # bit for bit where nothing is reduced


def test_other_files_and_pixels_in_memory_are_cut_as_they_are(tmp_path: Path) -> None:
    box = np.array([10.0, 20.0, 400.0, 400.0])
    expected = crop_image(Image.fromarray(PICTURE), box, False, 40)
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    label = np.zeros(1, np.int64)
    for images in (FolderImages((tmp_path / "x.png",), label), ArrayImages(PICTURE[None], label)):
        assert np.array_equal(load_crop(images, 0, 3, lambda *_: (box, False), 40), expected)


def test_a_cut_file_is_told_as_at_full_size(tmp_path: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "x.jpg"
    Image.fromarray(PICTURE).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:9000])
    images, box = FolderImages((path,), np.zeros(1, np.int64)), np.array([0.0, 0.0, 487.0, 651.0])
    with pytest.raises(DataError) as full:
        images.load(0)
    with pytest.raises(DataError) as reduced:
        load_crop(images, 0, 3, lambda *_: (box, False), 40)
    assert str(reduced.value).split(" (")[0] == str(full.value).split(" (")[0]
