"""Images that a camera stored turned or mirrored come out upright, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.io import ImageReadMode, decode_image

from convnext_deploy.data.pixels import as_array, to_channels
from tests.images import read_image

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")

Array = NDArray[Any]

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def pixels(path: Path) -> Array:
    return np.asarray(read_image(path))


def stored_as(upright: Array, orientation: int) -> Array:
    """Return what a camera writes with an orientation (EXIF 2.32, tag 274: where row 0 and column 0 belong)."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(turned[orientation])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("x.png", "x.webp", "x.tif") for kind in ("RGB", "L", "RGBA")),
        ("x.png", "16 bits"),
        ("x.tif", "16 bits"),
    ],
)
def test_rotated_images_come_out_upright(tmp_path: Path, name: str, kind: str) -> None:
    upright = {"RGB": COLOURS, "RGBA": np.dstack([COLOURS, np.full((6, 9, 1), 255, np.uint8)])}.get(
        kind, COLOURS[..., 0]
    )
    if kind == "16 bits":
        upright = upright.astype(np.uint16) * 257
    channels = 3 if kind.startswith("RGB") else 1
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(stored_as(upright, orientation)).save(tmp_path / name, exif=exif, lossless=True)
        found = to_channels(read_image(tmp_path / name), channels)
        assert np.array_equal(as_array(found), COLOURS if channels == 3 else COLOURS[..., :1]), orientation
        assert np.array_equal(as_array(to_channels(found, channels)), as_array(found)), orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_jpeg_equals_torchvision(tmp_path: Path, orientation: int) -> None:
    path, exif = tmp_path / "x.jpg", Image.Exif()
    exif[274] = orientation
    smooth = np.asarray(Image.fromarray(COLOURS).resize((45, 30)))
    Image.fromarray(stored_as(smooth, orientation)).save(path, exif=exif, quality=95)
    expected = decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True).permute(1, 2, 0).numpy()
    found = pixels(path)
    assert found.shape == (30, 45, 3)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.array_equal(as_array(to_channels(read_image(path), 3)), found)


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0"])
def test_damaged_exif_costs_no_image(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "x.png"), COLOURS)


def test_orientation_in_xmp_is_applied(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    Image.fromarray(stored_as(COLOURS, 3)).save(tmp_path / "x.png", pnginfo=info)
    assert np.array_equal(pixels(tmp_path / "x.png"), COLOURS)
