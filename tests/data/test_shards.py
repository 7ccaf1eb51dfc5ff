"""Tar shards: the same images, batches and splits as the folder they were made of, read in any order."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.data.datasets import FolderImages, ImageSet, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.sampling import calibration_indices
from convnext_deploy.errors import DataError
from tests.conftest import CLASSES, write_image_folder
from tests.shards import MAKE_SHARDS, make_shards, numbered, places, png, sample, write_tar


def assert_same_images(found: ImageSet, expected: ImageSet) -> None:
    assert np.array_equal(found.labels, expected.labels)
    assert found.labels.dtype == np.int64
    assert len(found) == len(expected)
    for index in np.random.default_rng(0).permutation(len(expected)):
        assert found.content(index) == expected.content(index)
        ours, theirs = found.load(index), expected.load(index)
        assert (ours.mode, ours.size, ours.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder with files of many kinds."""
    root = write_image_folder(tmp_path / "photos", train=7, validation=3)
    noise = np.random.default_rng(1).integers(0, 65536, (24, 17), dtype=np.uint16)
    exif = Image.Exif()
    exif[ExifTag.Orientation] = 6
    colour = Image.fromarray(noise.view(np.uint8).reshape(24, 17, 2)[..., [0, 1, 0]])
    colour.save(root / "train" / "cat" / "turned.JPG", exif=exif)
    colour.save(root / "train" / "dog" / "a.webp")
    Image.fromarray(noise).save(root / "train" / "dog" / "deep.tif", compression="tiff_lzw")
    Image.fromarray(noise / np.float32(65535)).save(root / "train" / "owl" / "float.tiff", compression="tiff_lzw")
    (root / "train" / "cat" / "deeper").mkdir()
    Image.fromarray(noise.astype(np.uint8)).save(root / "train" / "cat" / "deeper" / "grey.png")
    return root


@pytest.mark.parametrize("samples", [None, 1, 5])
def test_shards_hold_the_images_of_the_folder(folder: Path, tmp_path: Path, samples: int | None) -> None:
    data, expected = open_data(str(make_shards(folder, tmp_path / "shards", samples))), open_data(str(folder))
    assert_same_images(data.train, expected.train)
    assert_same_images(data.validation, expected.validation)
    assert (data.class_names, data.notes, data.split, data.unreadable) == (CLASSES, (), None, ())
    assert data.name == str(tmp_path / "shards")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "über/" + "long.name/" * 12])
def test_every_tar_format_is_read(folder: Path, tmp_path: Path, kind: int, prefix: str) -> None:
    expected = open_data(str(folder))
    for split, images in (("train", expected.train), ("val", expected.validation)):
        assert isinstance(images, FolderImages)
        files = [("./", b""), ("__meta__/notes.json", b"{}"), ("no-suffix", b"x")]
        for index, path in enumerate(images.paths):
            key = f"{prefix}{index:04}"
            files += [(f"{key}.cls", b"%d\n" % images.labels[index]), (f"{key}{path.suffix}", path.read_bytes())]
        write_tar(tmp_path / "shards" / f"{split}.tar", files, kind)
    data = open_data(str(tmp_path / "shards"))
    assert_same_images(data.train, expected.train)
    assert_same_images(data.validation, expected.validation)
    assert data.class_names == ("0", "1", "2")
    assert sorted(places(data.validation))[0] == prefix.removeprefix("./") + "0000.png"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_the_folder(folder: Path, tmp_path: Path, workers: int) -> None:
    data, expected = open_data(str(make_shards(folder, tmp_path / "shards", 4))), open_data(str(folder))
    order = np.random.default_rng(0).permutation(len(expected.train)).tolist()
    preprocess = default_preprocess(32)
    found = EvaluationBatches(data.train, preprocess, 5, workers, order)
    wanted = EvaluationBatches(expected.train, preprocess, 5, 0, order)
    for (images, labels), (wanted_images, wanted_labels) in zip(found, wanted, strict=True):
        assert torch.equal(images, wanted_images)
        assert torch.equal(labels, wanted_labels)


def test_samples_are_read_by_many_threads_and_leave_no_file_open(folder: Path, tmp_path: Path) -> None:
    train = open_data(str(make_shards(folder, tmp_path / "shards", 3))).train
    before = len(list(Path("/proc/self/fd").iterdir()))
    expected = [train.content(index) for index in range(len(train))]
    order = np.random.default_rng(0).integers(0, len(train), 500).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(train.content, order)) == [expected[index] for index in order]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_copies_are_kept_apart_from_validation_and_calibration(tmp_path: Path) -> None:
    numbered(tmp_path / "train-0.tar", range(20))
    copies = [(f"copy-{name}", content) for number in (7, 3, 12) for name, content in sample(number, number % 2)]
    write_tar(tmp_path / "val-0.tar", [*copies, *sample(30, 0)])
    data = open_data(str(tmp_path))
    assert calibration_indices(data.train, data.validation, 100, seed=0) == sorted({*range(20)} - {7, 3, 12})
    hints = [data.train.size_hint(index) for index in range(20)]
    assert [data.validation.size_hint(index) for index in range(3)] == [hints[7], hints[3], hints[12]]
    assert len(set(hints)) == 20  # or every validation image would be read to compare it


def test_images_in_folders_come_before_archives(folder: Path) -> None:
    before = open_data(str(folder)).fingerprint
    numbered(folder / "train.tar", range(4))
    numbered(folder / "train" / "old.tar.gz", range(4))
    assert open_data(str(folder)).fingerprint == before


def test_labels_are_read_from_json_where_there_is_no_cls(tmp_path: Path) -> None:
    files = []
    for number, label in enumerate([1, 0, 1, 0]):
        files += [(f"{number}.jpg", png(number)), (f"{number}.json", json.dumps({"label": label, "a": "b"}).encode())]
    files += [("9.JSON", b'{"label": 1}'), ("9.PNG", png(9)), ("9.Cls", b" 0\n"), ("9.txt", b"7")]
    write_tar(tmp_path / "train.tar", files)
    write_tar(tmp_path / "val.tar", files)
    assert open_data(str(tmp_path)).train.labels.tolist() == [1, 0, 1, 0, 0]


def test_class_names_are_read(tmp_path: Path) -> None:
    numbered(tmp_path / "0.tar", range(10))
    assert open_data(str(tmp_path)).class_names == ("0", "1")
    (tmp_path / "classnames.txt").write_bytes("\ufeffcrane\r\ncrane\r\n\n".encode())  # as of ImageNet
    data = open_data(str(tmp_path))
    assert data.class_names == ("crane", "crane")
    assert data.validation.labels.tolist() == [0, 1] or data.validation.labels.tolist() == [1, 0]
    (tmp_path / "classes.txt").write_text("röd\nbla")
    assert open_data(str(tmp_path)).class_names == ("röd", "bla")


class _Trap:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("trap",)


def test_nothing_is_unpacked_or_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    trap = pickle.dumps(_Trap())
    files = [(f"0.{suffix}", trap) for suffix in ("pyd", "pickle", "pth", "pt", "npy", "npz", "ten", "txt")]
    files += [("0.png", png(0)), ("0.cls", b"0"), ("../../1.png", png(1)), ("../../1.cls", b"1")]
    files += [(f"{tmp_path}/2.png", b"no image"), (f"{tmp_path}/2.cls", b"1")]
    write_tar(Path("train.tar"), files)
    write_tar(Path("val.tar"), files)
    data = open_data(".", skip_unreadable=True)
    assert {data.train.load(index).size for index in range(2)} == {(4, 4)}
    assert [str(path) for path in data.unreadable] == [f"{split}.tar{tmp_path}/2" for split in ("train", "val")]
    found = sorted(path.name for path in tmp_path.rglob("*"))
    assert found == [".convnext_deploy-shards.npz", "a", "b", "train.tar", "val.tar"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes() + b"x"),
            "has changed since the data was opened; start again.",
        ),
        (lambda path: os.utime(path, ns=(0, 0)), "has changed since the data was opened; start again."),
        (lambda path: path.unlink(), "cannot be read (No such file or directory)."),
    ],
)
def test_a_shard_that_changes_is_named(
    tmp_path: Path, change: Callable[[Path], object], reason: str, workers: int
) -> None:
    numbered(tmp_path / "train.tar", range(8))
    numbered(tmp_path / "val.tar", range(8))
    data = open_data(str(tmp_path))
    change(tmp_path / "val.tar")
    with pytest.raises(DataError) as caught:
        list(EvaluationBatches(data.validation, default_preprocess(32), 4, workers))
    assert str(caught.value) == f"{tmp_path / 'val.tar'} {reason}"


def test_damage_amid_the_pixels_is_named(tmp_path: Path) -> None:
    content = png(3)
    middle = content.index(b"IDAT") + 8
    files = [*sample(0, 0), *sample(1, 1), ("x/2.png", content[:middle] + b"\xff\xff" + content[middle + 2 :])]
    write_tar(tmp_path / "0.tar", [*files, ("x/2.cls", b"1"), *sample(3, 0)])
    data = open_data(str(tmp_path))
    images = data.train if "x/2.png" in places(data.train) else data.validation
    with pytest.raises(DataError, match=r"0\.tar/x/2\.png cannot be read as an image \("):
        [images.load(index) for index in range(len(images))]


def _rewrite(path: Path, content: bytes) -> None:
    """Change what is in a file, but neither its size nor its time."""
    status = path.stat()
    assert path.read_bytes() != content
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


def _relabel(root: Path) -> None:
    content = bytearray((root / "train-0.tar").read_bytes())
    for number in (0, 1):  # exchange the labels of two samples
        content[(4 * number + 3) * tarfile.BLOCKSIZE] ^= 1
    _rewrite(root / "train-0.tar", bytes(content))


def _repaint(root: Path) -> None:
    _rewrite(root / "val-0.tar", (root / "val-0.tar").read_bytes().replace(png(12), png(200)))


CHANGES: dict[str, Callable[[Path], object]] = {
    "name": lambda root: (root / "val-0.tar").rename(root / "val-1.tar"),
    "sample": lambda root: numbered(root / "val-0.tar", range(9)),
    "label": _relabel,
    "image": _repaint,
    "shard": lambda root: numbered(root / "train-1.tar", range(30, 32)),
    "class": lambda root: (root / "classes.txt").write_text("a\nb\n"),
    "role": lambda root: (root / "val-0.tar").rename(root / "train-1.tar"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_fingerprint_changes_when_a_shard_changes(tmp_path: Path, change: Callable[[Path], object]) -> None:
    numbered(tmp_path / "train-0.tar", range(8))
    numbered(tmp_path / "val-0.tar", range(10, 20))
    before = open_data(str(tmp_path)).fingerprint
    assert open_data(str(tmp_path)).fingerprint == before
    change(tmp_path)
    assert open_data(str(tmp_path)).fingerprint != before


def test_fingerprint_is_that_of_a_copy_elsewhere_with_other_times(tmp_path: Path) -> None:
    numbered(tmp_path / "here" / "train-0.tar", range(8))
    numbered(tmp_path / "here" / "val-0.tar", range(10, 20))
    shutil.copytree(tmp_path / "here", tmp_path / "scratch" / "17")
    os.utime(tmp_path / "scratch" / "17" / "train-0.tar", ns=(0, 0))
    found = [open_data(str(root)) for root in (tmp_path / "here", tmp_path / "scratch" / "17")]
    assert len({data.fingerprint for data in found}) == len({data.validation_fingerprint for data in found}) == 1


def test_fingerprint_changes_with_the_split_alone(tmp_path: Path) -> None:
    numbered(tmp_path / "0.tar", range(40))
    assert len({open_data(str(tmp_path), split_seed=seed).fingerprint for seed in (0, 0, 1)}) == 2


def test_data_can_be_sent_to_other_processes(folder: Path, tmp_path: Path) -> None:
    data = open_data(str(make_shards(folder, tmp_path / "shards", 4)))
    sent = pickle.loads(pickle.dumps(data))
    assert sent.fingerprint == data.fingerprint
    assert_same_images(sent.train, data.train)
    assert sent.train.index is sent.validation.index  # which is large


def test_page_makes_shards_by_the_lines_that_the_tests_run() -> None:
    assert MAKE_SHARDS in (Path(__file__).parents[2] / "recipes/how-to/images.md").read_text(encoding="utf-8")
