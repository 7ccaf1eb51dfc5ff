"""Small images decoded once, into memory or into a file that is mapped: the same pixels, and a file that is whole."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.datasets import ArrayImages, FolderImages
from convnext_deploy.data.kept_pixels import LARGEST_SIDE
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.data.pixel_cache import PixelCache, decode_small
from convnext_deploy.errors import DataError, OutputError
from tests.data.test_loaders import PLAIN, noise_images
from tests.data.test_training_batches import EVERYTHING
from tests.system.faulty_disk import largest_file

IMAGES = noise_images(23, 40)


def mapped(file: Path, images: ArrayImages | FolderImages = IMAGES, channels: int = 3) -> PixelCache:
    """Decode into a file, or take what is there."""
    cache = decode_small(images, channels, file, most_in_memory=0)
    assert cache is not None
    assert cache.is_mapped
    return cache


def training(cache: PixelCache | None, **options: Any) -> TrainingBatches:
    augmentation = Augmentation(**EVERYTHING)
    return TrainingBatches(IMAGES, PLAIN, BatchPlan(5, 5, augmentation, seed=1), cache=cache, **options)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ArrayImages, index: int) -> Image.Image:
        raise AssertionError(f"image {index} was decoded")

    monkeypatch.setattr(ArrayImages, "load", fail)


@pytest.mark.parametrize("channels", [1, 3])
def test_decode_small_maps_the_pixels_that_it_would_keep_in_memory(channels: int, tmp_path: Path) -> None:
    kept = decode_small(IMAGES, channels)
    assert kept is not None
    assert not kept.is_mapped
    for cache in (
        mapped(tmp_path / "p" / "a.npy", channels=channels),
        mapped(tmp_path / "p" / "a.npy", channels=channels),
    ):
        assert cache.pixels.shape == (23, 40, 40, channels)
        assert torch.equal(cache.pixels, kept.pixels)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["a.npy"]


def test_decode_small_needs_a_file_only_for_more_than_the_memory_may_hold(tmp_path: Path) -> None:
    size, file = IMAGES.arrays.nbytes, tmp_path / "a.npy"
    kept = decode_small(IMAGES, 3, file, most_in_memory=size)
    assert kept is not None
    assert (kept.is_mapped, file.exists()) == (False, False)
    assert decode_small(IMAGES, 3, None, most_in_memory=size - 1) is None
    found = decode_small(IMAGES, 3, file, most_in_memory=size - 1)
    assert found is not None
    assert (found.is_mapped, file.exists()) == (True, True)


def test_training_batches_of_mapped_pixels_are_those_of_pixels_in_memory(tmp_path: Path) -> None:
    for number in range(2):
        pairs = zip(training(None).epoch(number), training(mapped(tmp_path / "a.npy")).epoch(number), strict=True)
        for expected, found in pairs:
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.labels, expected.labels)


def test_decode_small_decodes_nothing_when_the_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mapped(tmp_path / "a.npy")
    forbid_decoding(monkeypatch)
    second = mapped(tmp_path / "a.npy")
    assert torch.equal(second.pixels, first.pixels)
    assert len(list(training(second).epoch(0))) == 4
    assert torch.equal(decode_small(IMAGES, 3, tmp_path / "a.npy").pixels, first.pixels)  # type: ignore[union-attr]


def test_nothing_is_written_into_a_mapped_file(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    cache = mapped(file)
    before = file.read_bytes()
    plain = TrainingBatches(
        IMAGES,
        dataclasses.replace(PLAIN, image_size=40),
        # the whole image, at its own size
        BatchPlan(5, 5, Augmentation(crop_scale_min=1.0, flip_probability=0.0), seed=1),
        cache=cache,
    )
    pixels = cache.pixels.clone()
    for batches in (plain, training(cache)):
        for batch in batches.epoch(0):
            batch.images.fill_(7.0)
            batch.labels.fill_(1)
    assert torch.equal(cache.pixels, pixels)
    cache.pixels.zero_()
    del cache
    assert file.read_bytes() == before
    assert torch.equal(mapped(file).pixels, pixels)


def other_file(file: Path, arrays: Any) -> None:
    with file.open("wb") as opened:
        np.save(opened, arrays)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda file: file.write_bytes(b""),
    "cut in the header": lambda file: file.write_bytes(file.read_bytes()[:40]),
    "cut in the pixels": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "text": lambda file: file.write_text("not an array\n" * 9000),
    "header that is no header": lambda file: file.write_bytes(file.read_bytes().replace(b"(23, ", b"(23{ ", 1)),
    "zip": lambda file: file.write_bytes(b"PK\x03\x04" + bytes(9000)),
    "pickle": lambda file: other_file(file, np.array([{}], dtype=object)),
    "a bit of a pixel": lambda file: flip(file, -5000),
    "a bit of the checksum": lambda file: flip(file, -3),
    "a space of the header": lambda file: flip(file, 100),
    "fewer images": lambda file: other_file(file, IMAGES.arrays[:-1]),
    "grey images": lambda file: other_file(file, IMAGES.arrays[..., :1]),
    "floats": lambda file: other_file(file, IMAGES.arrays.astype(np.float32)),
    "flat": lambda file: other_file(file, IMAGES.arrays.reshape(23, -1)),
    "one dimension more": lambda file: other_file(file, IMAGES.arrays[..., None]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_decode_small_replaces_a_file_that_is_not_whole_or_another(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    file = tmp_path / "a.npy"
    mapped(file)
    whole = file.read_bytes()
    damage(file)
    assert file.read_bytes() != whole
    assert torch.equal(mapped(file).pixels, torch.from_numpy(IMAGES.arrays))
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


def folder_images(folder: Path, *sides: int) -> FolderImages:
    paths = []
    for index, side in enumerate(sides):
        paths.append(folder / f"{index}.png")
        Image.fromarray(noise_images(1, side).arrays[0]).save(paths[-1])
    return FolderImages(tuple(paths), np.zeros(len(paths), np.int64))


@pytest.mark.parametrize("sides", [(20, 20, 21), (LARGEST_SIDE + 1,) * 2])
def test_decode_small_leaves_no_file_of_images_that_differ_or_are_large(sides: tuple[int, ...], tmp_path: Path) -> None:
    images, folder = folder_images(tmp_path, *sides), tmp_path / "cache"
    folder.mkdir()
    assert decode_small(images, 3, folder / "a.npy", most_in_memory=0) is None
    assert decode_small(images, 3) is None
    assert list(folder.iterdir()) == []


def test_decode_small_leaves_no_file_when_an_image_is_unreadable(tmp_path: Path) -> None:
    images, folder = folder_images(tmp_path, 20, 20, 20), tmp_path / "cache"
    images.paths[2].write_bytes(b"broken")
    with pytest.raises(DataError, match=re.escape(str(images.paths[2]))):
        decode_small(images, 3, folder / "a.npy", most_in_memory=0)
    assert list(folder.iterdir()) == []


def test_decode_small_ends_with_one_whole_file_when_two_write_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first is at image 10 a second one begins and ends."""
    file, load = tmp_path / "a.npy", ArrayImages.load
    others: list[PixelCache] = []

    def load_slowly(self: ArrayImages, index: int) -> Image.Image:
        if index == 10 and not others:
            monkeypatch.setattr(ArrayImages, "load", load)
            others.append(mapped(file))
        return load(self, index)

    monkeypatch.setattr(ArrayImages, "load", load_slowly)
    first = mapped(file)
    assert len(others) == 1
    for cache in (first, others[0], mapped(file)):
        assert torch.equal(cache.pixels, torch.from_numpy(IMAGES.arrays))
    assert list(tmp_path.iterdir()) == [file]


def test_decode_small_removes_what_killed_processes_left(tmp_path: Path) -> None:
    old, young = tmp_path / ".x.npy.1.partial", tmp_path / ".y.npy.2.partial"
    for path in (old, young):
        path.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    mapped(tmp_path / "a.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", young.name}


@pytest.mark.parametrize("is_limited", [True, False])
def test_decode_small_says_in_one_line_that_the_disk_is_full_before_it_decodes(
    is_limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(descriptor: int, start: int, size: int) -> None:
        assert size > IMAGES.arrays.nbytes
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def load(self: ArrayImages, index: int) -> Image.Image:
        assert index == 0
        return Image.fromarray(self.arrays[index])

    monkeypatch.setattr(ArrayImages, "load", load)
    if not is_limited:
        monkeypatch.setattr(os, "posix_fallocate", no_room)
    file, reason = tmp_path / "a.npy", "File too large" if is_limited else "No space left on device"
    advice = "raise the limit on the size of files by ulimit -f, 60,000 bytes" if is_limited else "make room"
    needs = rf"\(it needs {IMAGES.arrays.nbytes:,} bytes[^\n]+"
    text = rf"^decoded images cannot be written to {re.escape(str(file))} \({reason}\); {advice} {needs}--cache-dir\.$"
    with largest_file(60_000 if is_limited else 1 << 30), pytest.raises(OutputError, match=text):
        decode_small(IMAGES, 3, file, most_in_memory=0)
    assert list(tmp_path.iterdir()) == []


def test_decode_small_says_in_one_line_that_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(
        OutputError,
        match=r"^decoded images cannot be written to [^\n]+ \(Not a directory\); choose another folder with --cache-dir",
    ):
        decode_small(IMAGES, 3, tmp_path / "taken" / "pixels" / "a.npy", most_in_memory=0)
    assert (tmp_path / "taken").read_text() == "a file"
