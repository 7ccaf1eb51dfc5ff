"""Shards of Mosaic's streaming library: the images of tar shards in another form, and what is refused of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.data.unlabelled import open_unlabelled
from convnext_deploy.errors import DataError
from tests import http_store
from tests.shards import numbered, png

SIZES = {"int": 8, "uint8": 1, "int32": 4, "float32": 4}
TYPES = {"int": "<i8", "uint8": "u1", "int32": "<i4", "float32": "<f4"}
LABELLED = {"image": "png", "label": "int"}
Value = bytes | int | float


def write_mds(
    path: Path, samples: Sequence[dict[str, Value]], columns: dict[str, str] = LABELLED, version: int = 2
) -> Path:
    """Write a shard as `MDSWriter` does: columns in the order of their names."""
    names = sorted(columns)
    described: dict[str, Any] = {
        "version": version, "format": "mds", "compression": None, "hashes": [], "size_limit": 1 << 26, "column_names": names,
        "column_encodings": [columns[name] for name in names], "column_sizes": [SIZES.get(columns[name]) for name in names],
    }  # fmt: skip
    config = json.dumps(described, sort_keys=True).encode()
    bodies = []
    for sample in samples:
        data = [_encode(columns[name], sample[name]) for name in names]
        head = [len(datum) for name, datum in zip(names, data, strict=True) if columns[name] not in SIZES]
        bodies.append(struct.pack(f"<{len(head)}I", *head) + b"".join(data))
    places = np.cumsum([4 + 4 * (len(bodies) + 1) + len(config), *map(len, bodies)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<I", len(bodies)) + places.astype("<u4").tobytes() + config + b"".join(bodies))
    return path


def _encode(encoding: str, value: Value) -> bytes:
    return value if isinstance(value, bytes) else np.array(value, TYPES[encoding]).tobytes()


def samples(numbers: Sequence[int]) -> list[dict[str, Value]]:
    return [{"image": png(number), "label": number % 2} for number in numbers]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mds"
    for shard in range(2):
        write_mds(root / "train" / f"shard.{shard:05}.mds", samples(range(20 * shard, 20 * shard + 20)))
    write_mds(root / "val" / "shard.00000.mds", samples(range(100, 112)))
    (root / "train" / "index.json").write_text("{}")  # of the library; every shard names its columns itself
    return root


def content(data: Data) -> list[tuple[bytes, int]]:
    return [
        (part.content(row), int(label))
        for part in (data.train, data.validation)
        for row, label in enumerate(part.labels)
    ]


def test_images_and_labels_are_those_of_tar_shards(folder: Path, tmp_path: Path) -> None:
    for shard in range(2):
        numbered(tmp_path / "tar" / f"train-{shard}.tar", range(20 * shard, 20 * shard + 20))
    numbered(tmp_path / "tar" / "val-0.tar", range(100, 112))
    found, expected = open_data(str(folder)), open_data(str(tmp_path / "tar"))
    assert content(found) == content(expected)
    assert (found.class_names, found.notes) == (expected.class_names, expected.notes)
    assert found.train.load(3).size == (4, 4)
    assert open_data(str(folder)).fingerprint == found.fingerprint  # by the index beside the shards
    held_out = open_data(str(folder / "train"), validation_fraction=0.2)
    assert (len(held_out.train), len(held_out.validation)) == (32, 8)


def test_shards_at_a_url_and_without_labels(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="shards at URLs need the extra `remote`, or `test`")
    here = open_data(str(folder))
    with http_store.serve(folder) as store:
        there = open_data(f"{store.url}/{{train/shard.0000{{0,1}},val/shard.00000}}.mds", cache_dir=tmp_path)
        assert (there.fingerprint, content(there)) == (here.fingerprint, content(here))
    write_mds(tmp_path / "more" / "0.mds", [{"x": png(200)}, {"x": png(100)}], {"x": "bytes"})
    more = open_unlabelled(str(tmp_path / "more"), here.train, [here.validation], Contents())
    assert len(more.images) == 1  # the other one validates


@pytest.mark.parametrize(
    ("columns", "sample"),
    [
        ({"x": "bytes", "y": "uint8"}, {"x": png(1), "y": 1}),
        ({"jpg": "jpeg:90", "cls": "str_int", "raw": "pkl"}, {"jpg": png(1), "cls": b"1", "raw": b"never read"}),
        (
            {"image": "png", "mask": "png", "label": "int32", "width": "int"},
            {"image": png(1), "mask": b"", "label": 1, "width": 4},
        ),
    ],
)
def test_columns_are_found_by_kind_and_name(tmp_path: Path, columns: dict[str, str], sample: dict[str, Value]) -> None:
    for split in ("train", "val"):
        label = next(name for name in columns if name in ("y", "cls", "label"))
        other = sample | {label: b"0" if columns[label] == "str_int" else 0}
        write_mds(tmp_path / split / "0.mds", [sample, other, sample], columns)
    data = open_data(str(tmp_path))
    assert [data.train.content(row) for row in range(3)] == [png(1)] * 3
    assert data.train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is cut: it has "),
        (lambda path: path.write_bytes(b"\xff" * 99), "is no shard in the format MDS"),
        (lambda path: path.write_bytes(b""), "is no shard in the format MDS"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b'"mds"', b'"csv"')), "is no shard in version 2"),
        (lambda path: write_mds(path, samples(range(4)), version=1), "is no shard in version 2"),
        (lambda path: write_mds(path, []), "has no samples"),
        (lambda path: write_mds(path, [{"text": b"x"}], {"text": "str"}), r"has the columns text \(str\); expected one of images "),
        (lambda path: write_mds(path, [{"a": png(1)}], {"a": "png"}), "has the columns a .*; expected one of class numbers"),
        (lambda path: write_mds(path, [{"image": png(1), "label": -1}]), "/00000000.png has no class index as 'label'"),
        (lambda path: write_mds(path, [{"image": b"x" * 99, "label": 1}]), "/00000000.png cannot be read as an image"),
        (lambda path: path.rename(path.with_name("0.mds.zstd")), "is compressed, .*write it with compression=None"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(folder: Path, change: Callable[[Path], object], expected: str) -> None:
    change(folder / "train" / "shard.00001.mds")
    with pytest.raises(DataError, match=expected) as caught:
        open_data(str(folder))
    assert str(caught.value).isprintable()


def test_samples_that_cannot_be_used_are_left_out(folder: Path) -> None:
    odd: list[dict[str, Value]] = [{"image": b"x" * 99, "label": 1}, {"image": png(7), "label": 10**12}]
    write_mds(folder / "train" / "shard.00002.mds", [*odd, *samples(range(50, 54))])
    data = open_data(str(folder), skip_unreadable=True)
    assert len(data.train) == 44
    assert [path.name for path in data.unreadable] == ["00000000.png", "00000001.png"]
