"""Values far below what a type can hold, as 12 bits in 16, are said; one image that uses its range is enough to say nothing."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.data.value_range import describe_dark


@dataclass(frozen=True)
class Files:
    contents: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.contents)

    def content(self, index: int) -> bytes:
        return self.contents[index]


def encode(kind: str, top: float, dtype: Any, shape: tuple[int, ...] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, top, int(np.prod(shape))).astype(dtype).reshape(shape)).save(buffer, kind)
    return buffer.getvalue()


def deep_colour(top: int) -> bytes:
    """A PNG file of colours of 16 bits."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + np.full((4, 3), top, ">u2").tobytes()
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    stream = chunk(b"IDAT", zlib.compress(row * 4))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + stream + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encode("PNG", 4095, np.uint16), "4,095 of 65,535: they are read as they are, black to 16 of 255, and not stretched"),
        (encode("PNG", 4000, np.uint16), "4,000 of 65,535: they are read as they are, black to 16 of 255"),
        (encode("TIFF", 1023, np.uint16), "1,023 of 65,535: they are read as they are, black to 4 of 255"),
        (encode("TIFF", 1000, np.int32), "if 1,023 is meant to be white, multiply them by 64.06 first"),
        (encode("TIFF", 0.0625, np.float32), "0.0625 of 1: they are read as they are, black to 16 of 255"),
        (encode("PNG", 9, np.uint8), "black to 9 of 255, and not stretched; if 15 is"),
        (deep_colour(4095), "3,855 of 65,535: they are read as they are, black to 15 of 255"),
    ],
    ids=["12 in 16 bits", "nearly", "10 in 16 bits", "10 in 32 bits", "floats", "labels", "colours"],
)  # fmt: skip
def test_values_far_below_the_range_are_said(content: bytes, said: str) -> None:
    found = describe_dark(Files((content,) * 40))
    assert found is not None
    assert said in found
    assert found.startswith("the largest value in 32 images that were looked at is ")


@pytest.mark.parametrize(
    "content",
    [
        encode("PNG", 65535, np.uint16),
        encode("TIFF", 40000, np.uint16),
        encode("TIFF", 1, np.float32),
        encode("PNG", 255, np.uint8),
        encode("JPEG", 9, np.uint8),
        b"P5 4 4 1023\n" + np.full((4, 4), 1000, ">u2").tobytes(),
        deep_colour(65535),
        b"no image",
    ],
    ids=["16 bits", "most of 16 bits", "floats", "8 bits", "photographs", "10 bits that say so", "colours", "damaged"],
)
def test_images_that_use_their_range_are_not(content: bytes) -> None:
    assert describe_dark(Files((content,))) is None
    dark = encode("PNG", 4095, np.uint16)
    if content != b"no image" and not content.startswith(b"\xff\xd8"):
        assert describe_dark(Files((dark, content))) is None


@pytest.mark.parametrize(
    "content",
    [encode("PNG", 0, np.uint8), encode("PNG", 0, np.uint16), encode("TIFF", 0, np.float32), deep_colour(0)],
    ids=["8 bits", "16 bits", "floats", "colours"],
)
def test_black_images_are_said(content: bytes) -> None:
    found = describe_dark(Files((content,) * 3))
    assert found is not None
    assert found.startswith("all 3 images that were looked at are black")
    assert describe_dark(Files((content, encode("PNG", 255, np.uint8)))) is None


@pytest.mark.parametrize("value", [np.nan, -1.0, -np.inf])
def test_values_that_no_image_may_have_are_told_elsewhere(value: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.float32)).save(buffer, "TIFF")
    assert describe_dark(Files((buffer.getvalue(),))) is None
    found = describe_dark(Files((buffer.getvalue(), encode("TIFF", 0.0625, np.float32))))
    assert found is not None
    assert found.startswith("the largest value in 1 images that were looked at is 0.0625 of 1")
