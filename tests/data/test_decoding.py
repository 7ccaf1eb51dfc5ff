"""Every kind of image file comes out upright, in 8 bits, with the pixel values that were put in."""

from __future__ import annotations

import struct
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torchvision.io import ImageReadMode, decode_image

from convnext_deploy.data.pixels import quiet
from convnext_deploy.errors import DataError
from tests.images import read_image

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")

Array = NDArray[Any]

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def pixels(path: Path) -> Array:
    image = read_image(path)
    assert image.mode in ("L", "RGB")
    return np.asarray(image)


def write_tiff(
    path: Path, data: bytes, size: tuple[int, int], bits: tuple[int, ...], photometric: int, kind: int = 1
) -> Path:
    """Write an uncompressed little-endian TIFF file by its specification, independently of Pillow."""
    width, height = size
    start = 8 + len(bits) * 2
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, len(bits), bits[0] if len(bits) == 1 else 8),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, start),
        (277, 3, 1, len(bits)),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, kind),
    ]
    body = struct.pack(f"<{len(bits)}H", *bits) + data
    body += b"\0" * (len(body) % 2)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory)
    return path


@pytest.mark.parametrize(("name", "mode"), [("x.png", "I;16"), ("x.tif", "I;16"), ("x.tif", "I;16B"), ("x.tif", "I")])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, name: str, mode: str) -> None:
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    # 257 is 65535 / 255: each level, and what lies 128 beside it, rounds to that level
    for offset in (0, 128, -128):
        stored = np.clip(RAMP.astype(int) * 257 + offset, 0, 65535).astype(dtype)
        Image.frombytes(mode, (16, 16), stored.tobytes()).save(tmp_path / name)
        assert np.array_equal(pixels(tmp_path / name), RAMP)


def test_16_bit_png_equals_torchvision(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    Image.fromarray(stored).save(tmp_path / "x.png")
    exact = decode_image(str(tmp_path / "x.png"), ImageReadMode.GRAY)
    assert exact.dtype == torch.uint16
    expected = np.rint(exact[0].to(torch.float64).numpy() / 65535 * 255)
    assert np.array_equal(pixels(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("top", [255, 1023, 65535])
def test_pgm_is_scaled_from_its_own_maximum(tmp_path: Path, top: int) -> None:
    levels = np.array([0, top // 5, top // 3, top])
    path = tmp_path / "x.pgm"
    path.write_bytes(f"P5 4 1 {top}\n".encode() + levels.astype(np.uint8 if top < 256 else ">u2").tobytes())
    assert np.array_equal(pixels(path)[0], np.rint(levels * 255 / top))


def test_12_bit_tiff_is_scaled_from_4095(tmp_path: Path) -> None:
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])  # 0, 4095, 2048, 16
    path = write_tiff(tmp_path / "x.tif", packed, (4, 1), (12,), photometric=1)
    assert pixels(path).tolist() == [[0, 255, 128, 1]]


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, "<u2")])
def test_grey_tiff_with_white_as_zero_is_inverted(tmp_path: Path, bits: int, dtype: str) -> None:
    top = 2**bits - 1
    stored = np.array([0, top // 5, top]).astype(dtype).tobytes()
    assert pixels(write_tiff(tmp_path / "x.tif", stored, (3, 1), (bits,), photometric=0)).tolist() == [[255, 204, 0]]


def test_float_grey_is_scaled_from_0_to_1(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray((RAMP / 255).astype(np.float32)).save(path)
    assert np.array_equal(pixels(path), RAMP)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.0, 254.5]], np.float32), "from 0 to 254.5, expected 0 to 1;"),
        (np.array([[-0.5, 1.0]], np.float32), "from -0.5 to 1, expected 0 to 1;"),
        (np.array([[0.5, np.nan]], np.float32), "from nan to nan"),
        (np.array([[0, 70000]], np.int32), "from 0 to 70000, expected 0 to 65535;"),
        (np.array([[-1, 5]], np.int32), "from -1 to 5, expected 0 to 65535;"),
    ],
)
def test_grey_of_unknown_range_is_refused(tmp_path: Path, values: Array, reason: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif cannot be read as an image \(its grey values run") as caught:
        read_image(tmp_path / "x.tif")
    assert reason in str(caught.value)
    assert "convert it to 8 or 16 bits" in str(caught.value)


INKS = {
    (0, 0, 0, 0): (255, 255, 255),
    (255, 0, 0, 0): (0, 255, 255),
    (0, 255, 0, 0): (255, 0, 255),
    (0, 0, 255, 0): (255, 255, 0),
    (0, 0, 0, 255): (0, 0, 0),
    (0, 0, 0, 51): (204, 204, 204),
    (255, 255, 0, 0): (0, 0, 255),
    (51, 0, 0, 127): (102, 128, 128),
}


@pytest.mark.parametrize(("ink", "colour"), INKS.items())
@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, ink: tuple[int, ...], colour: tuple[int, ...], name: str) -> None:
    path = tmp_path / name
    Image.new("CMYK", (8, 8), ink).save(path, quality=100)
    assert (b"Adobe" in path.read_bytes()) == (name == "x.jpg")  # the marker that tells of inverted values
    assert np.abs(pixels(path).astype(int) - colour).max() <= 2
    if name == "x.jpg":
        other = decode_image(str(path), ImageReadMode.RGB).permute(1, 2, 0).numpy()
        assert np.abs(pixels(path).astype(int) - other).max() <= 2


@pytest.mark.parametrize("luma", [0, 64, 255])
def test_ycck_equals_torchvision(tmp_path: Path, luma: int) -> None:
    path = tmp_path / "x.jpg"
    # Pillow stores 255 minus these; then the marker is changed to say that they are luma, chroma and inverted black
    Image.new("CMYK", (8, 8), (255 - luma, 127, 127, 55)).save(path, quality=100)
    content = bytearray(path.read_bytes())
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2
    path.write_bytes(content)
    other = decode_image(str(path), ImageReadMode.RGB).permute(1, 2, 0).numpy()
    assert np.abs(pixels(path).astype(int) - other).max() <= 2
    assert np.abs(pixels(path).astype(int) - (255 - luma) * 200 / 255).max() <= 2


@pytest.mark.parametrize(
    ("lab", "colour"),
    [
        ((100, 0, 0), (255, 255, 255)),
        ((0, 0, 0), (0, 0, 0)),
        ((53.585, 0, 0), (128, 128, 128)),
        ((54.29, 80.81, 69.89), (255, 0, 0)),  # the sRGB primaries relative to D50, as Photoshop shows them
        ((87.82, -79.27, 80.99), (0, 255, 0)),
        ((29.57, 68.30, -112.03), (0, 0, 255)),
    ],
)
def test_lab_becomes_srgb(tmp_path: Path, lab: tuple[float, ...], colour: tuple[int, ...]) -> None:
    stored = struct.pack("<Bbb", round(lab[0] * 2.55), round(lab[1]), round(lab[2]))
    path = write_tiff(tmp_path / "x.tif", stored * 4, (2, 2), (8, 8, 8), photometric=8)
    # grey is exact; a step of a or b is several of a dark channel
    assert np.abs(pixels(path).astype(int) - colour).max() <= (24 if any(lab[1:]) else 1)


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 7, 7])
    image.putdata([2, 0, 1])
    for name in ("x.png", "x.gif", "x.bmp", "x.tif"):
        image.save(tmp_path / name)
        assert pixels(tmp_path / name).tolist() == [[[7, 7, 7], [10, 20, 30], [200, 100, 0]]]
    image.save(tmp_path / "one.png", transparency=0)
    image.save(tmp_path / "one.gif", transparency=0)
    for name in ("one.png", "one.gif"):
        assert pixels(tmp_path / name).tolist() == [[[7, 7, 7], [255, 255, 255], [200, 100, 0]]]
    image.save(tmp_path / "many.png", transparency=bytes([255, 51, 0]))
    assert pixels(tmp_path / "many.png").tolist() == [[[255, 255, 255], [10, 20, 30], [244, 224, 204]]]


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_rgba_is_laid_over_white(tmp_path: Path, name: str) -> None:
    alpha = np.linspace(0, 255, 54).astype(np.uint8).reshape(6, 9, 1)
    Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)).save(tmp_path / name, lossless=True, exact=True)
    share = alpha / 255
    expected = COLOURS * share + 255 * (1 - share)
    assert np.abs(pixels(tmp_path / name) - expected).max() <= 0.51


def test_grey_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    Image.merge("LA", [Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 51)]).save(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png").tolist() == [[224, 224], [224, 224]]


@pytest.mark.parametrize(
    ("values", "key", "expected"),
    [
        (np.array([[0, 7, 9]], np.uint8), 7, [[0, 255, 9]]),
        (np.array([[0, 257 * 7, 257 * 9]], np.uint16), 257 * 7, [[0, 255, 9]]),
        (np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8), (1, 2, 3), [[[255, 255, 255], [1, 2, 4]]]),
        (np.array([[False, True]]), 0, [[255, 255]]),
    ],
)
def test_transparent_colour_becomes_white(tmp_path: Path, values: Array, key: Any, expected: list[Any]) -> None:
    Image.fromarray(values).save(tmp_path / "x.png", transparency=key)
    assert b"tRNS" in (tmp_path / "x.png").read_bytes()
    assert pixels(tmp_path / "x.png").tolist() == expected


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp", "x.ppm"])
def test_one_bit_is_black_and_white(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / name)
    assert pixels(tmp_path / name).tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp", "x.png"])
def test_first_of_several_frames_counts(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / name) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert np.array_equal(pixels(tmp_path / name), np.full((4, 4, 3), (255, 0, 0)))


def test_icc_profile_changes_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(COLOURS).save(tmp_path / "x.png", icc_profile=profile)
    assert np.array_equal(pixels(tmp_path / "x.png"), COLOURS)


def test_threads_that_overlap_leave_the_filters_of_warnings_as_they_were() -> None:
    entered, left = threading.Event(), threading.Event()

    def stay_longer() -> None:
        with quiet():
            entered.set()
            left.wait(30)

    before = warnings.filters[:]
    thread = threading.Thread(target=stay_longer)
    with quiet():
        thread.start()
        assert entered.wait(30)
    warnings.warn("of an image that the thread is decoding", RuntimeWarning, stacklevel=1)  # an error where it is heard
    left.set()
    thread.join()
    assert warnings.filters == before
