"""Images that break amid their pixels are left out before anything is chosen, and are decoded in full only once."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.data import damage
from convnext_deploy.data.datasets import Data, FolderImages, open_data
from convnext_deploy.data.decoding import find_damage
from convnext_deploy.data.pixels import quiet
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder
from tests.images import read_image
from tests.shards import make_shards

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, stream: bytes) -> bytes:
    """A PNG file of grey pixels, whose checksums of chunks are right whatever the stream is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def change(content: bytes, place: float) -> bytes:
    position = int(len(content) * place)
    return (
        content[:position] + bytes(byte ^ 0xFF for byte in content[position : position + 8]) + content[position + 8 :]
    )


ROWS = zlib.compress(bytes(41 * 40))
DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "PNG, a wrong byte": ("x.png", lambda: change(encode("PNG"), 0.5)),
    "PNG, a damaged stream with right checksums": ("x.png", lambda: png(40, 40, change(ROWS, 0.4))),
    "PNG, a bomb": ("x.png", lambda: png(60000, 60000, ROWS)),
    "TIFF, deflate": ("x.tif", lambda: change(encode("TIFF", compression="tiff_adobe_deflate"), 0.5)),
    "JPEG, no tables": ("x.jpg", lambda: encode("JPEG").replace(b"\xff\xdb", b"\xff\xfe")),
    "JPEG, cut": ("x.jpg", lambda: encode("JPEG")[:900]),
    "nothing": ("x.jpg", lambda: b""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images", train=3, validation=2)


def names(data: Data) -> list[str]:
    sets = [images for images in (data.train, data.validation) if isinstance(images, FolderImages)]
    return [path.name for images in sets for path in images.paths]


@pytest.mark.parametrize(("name", "write"), DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_decoded_is_left_out(folder: Path, name: str, write: Callable[[], bytes]) -> None:
    path = folder / "val" / "dog" / name
    path.write_bytes(write())
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(path)
    data = open_data(str(folder), skip_unreadable=True)
    assert (data.unreadable, len(data.reasons), data.notes[1]) == ((path,), 1, f"  {path}")
    assert name not in names(data)
    for images in (data.train, data.validation):
        assert [images.load(index).size for index in range(len(images))] == [(32, 32)] * len(images)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_left_out(folder: Path) -> None:
    path = folder / "train" / "cat" / "0.png"
    path.chmod(0)
    assert open_data(str(folder), skip_unreadable=True).unreadable == (path,)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was decoded to find damage."""
    found: list[object] = []

    def count(function: Callable[[object], str | None], items: list[object], each: int) -> list[str | None]:
        found.extend(items)
        return [function(item) for item in items]

    monkeypatch.setattr(damage, "map_files", count)
    return found


def test_images_are_decoded_once_and_remembered_by_what_they_hold(
    folder: Path, tmp_path: Path, counted: list[object]
) -> None:
    broken = folder / "train" / "cat" / "x.png"
    broken.write_bytes(change(encode("PNG"), 0.5))
    first = open_data(str(folder), skip_unreadable=True, cache_dir=tmp_path / "cache")
    assert len(counted) == 16
    counted.clear()
    again = open_data(str(folder), skip_unreadable=True, cache_dir=tmp_path / "cache")
    assert (again.unreadable, again.reasons, again.fingerprint) == (first.unreadable, first.reasons, first.fingerprint)
    shutil.copytree(folder, tmp_path / "copy")
    copied = open_data(str(tmp_path / "copy"), skip_unreadable=True, cache_dir=tmp_path / "cache")
    assert (copied.fingerprint, len(copied.unreadable)) == (first.fingerprint, 1)
    assert not counted
    broken.write_bytes(encode("PNG"))
    mended = open_data(str(folder), skip_unreadable=True, cache_dir=tmp_path / "cache")
    assert (counted, mended.unreadable, len(mended.train)) == ([broken], (), 10)


def test_a_kept_table_that_was_altered_is_made_anew(folder: Path, tmp_path: Path, counted: list[object]) -> None:
    for _ in range(2):
        open_data(str(folder), skip_unreadable=True, cache_dir=tmp_path)
        assert len(counted) == 15
        (tmp_path / "decoded.bin").write_bytes(change((tmp_path / "decoded.bin").read_bytes(), 0.5))
        counted.clear()


def test_the_split_is_that_of_the_images_that_are_left(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "a", train=12, validation=1)
    shutil.rmtree(folder / "val")
    for name in ("3.png", "7.png"):
        path = folder / "train" / "owl" / name
        path.write_bytes(change(path.read_bytes(), 0.5))
    skipped = open_data(str(folder), skip_unreadable=True)
    for path in skipped.unreadable:
        path.unlink()
    plain = open_data(str(folder))
    assert (len(skipped.unreadable), skipped.fingerprint) == (2, plain.fingerprint)


def test_samples_of_shards_are_left_out(tmp_path: Path, counted: list[object]) -> None:
    pytest.importorskip("webdataset")
    folder = write_image_folder(tmp_path / "images", train=3, validation=2)
    (folder / "train" / "cat" / "x.png").write_bytes(change(encode("PNG"), 0.5))
    make_shards(folder, tmp_path / "shards", 100)
    plain = open_data(str(tmp_path / "shards"))
    assert len(plain.train) == 10
    for decoded in (16, 0):
        counted.clear()
        data = open_data(str(tmp_path / "shards"), skip_unreadable=True, cache_dir=tmp_path / "cache")
        assert (len(counted), len(data.train), data.train.labels.tolist()) == (decoded, 9, [0] * 3 + [1] * 3 + [2] * 3)
        assert [path.name for path in data.unreadable] == ["x.png"]
        assert data.reasons[0].startswith("cannot be read as an image (")
        assert [data.train.load(index).size for index in range(9)] == [(32, 32)] * 9


def test_jpeg_files_are_judged_as_by_decoding_all_of_them() -> None:
    rng, refused = np.random.default_rng(1), 0
    for options in ({}, {"progressive": True}):
        content = encode("JPEG", **options)
        for _ in range(60):
            damaged = bytearray(content)
            for position in rng.integers(0, len(damaged), 4):
                damaged[position] = rng.integers(256)
            with quiet():
                found = find_damage(io.BytesIO(damaged))
                try:
                    with Image.open(io.BytesIO(damaged)) as image:
                        image.load()
                    expected = False
                except Exception:
                    expected = True
            refused += expected
            assert (found is not None) == expected
    assert refused > 5


def cut(content: bytes, place: float) -> bytes:
    """Cut a JPEG file at a share of its pixels, and end it as it should end."""
    start = content.rindex(b"\xff\xda")
    return content[: start + int((len(content) - start) * place)].rstrip(b"\xff") + b"\xff\xd9"


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"restart_marker_rows": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_files_that_were_cut_and_end_as_they_should_are_found(mode: str, options: dict[str, int]) -> None:
    with io.BytesIO() as buffer:
        NOISE.resize((100, 90), Image.Resampling.NEAREST).convert(mode).save(buffer, "JPEG", **options)
        content = buffer.getvalue()
    with quiet():
        for place in (0.1, 0.37, 0.5, 0.8, 0.95):
            assert find_damage(io.BytesIO(cut(content, place))) == "its pixels end early", place
        assert find_damage(io.BytesIO(content)) is None


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_files_with_a_grey_corner_are_whole(mode: str) -> None:
    image = NOISE.convert(mode)
    image.paste(Image.new(mode, (20, 20), (128,) * len(image.getbands()) if mode != "L" else 128), (20, 20))
    with io.BytesIO() as buffer, quiet():
        image.save(buffer, "JPEG", quality=100)
        content = buffer.getvalue()
        assert find_damage(io.BytesIO(content)) is None
        assert find_damage(io.BytesIO(content + b"appended")) is None
        assert find_damage(io.BytesIO(cut(content, 0.5))) == "its pixels end early"
