"""The index of tar shards on disk: taken again, made anew when a shard changes, and never trusted."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.data import shard_index
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.data.shard_parts import Part
from convnext_deploy.data.shard_scan import Shard, scan_shard
from convnext_deploy.data.shards import ShardImages
from convnext_deploy.errors import DataError, OutputError
from tests.shards import numbered, sample, write_tar

BESIDE = ".convnext_deploy-shards.npz"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of three shards with ten samples each."""
    root = tmp_path / "shards"
    for index, name in enumerate(("train-0", "train-1", "val-0")):
        numbered(root / f"{name}.tar", range(10 * index, 10 * index + 10))
    return root


def train_of(data: Data) -> ShardImages:
    assert isinstance(data.train, ShardImages)
    return data.train


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of shards as they are read."""
    names: list[str] = []

    def note(shard: Shard, *given: Any, **options: Any) -> Part:
        names.append(shard.path.name)
        return scan_shard(shard, *given, **options)

    monkeypatch.setattr(shard_index, "scan_shard", note)
    return names


def test_index_is_kept_and_taken_again(shards: Path, tmp_path: Path, read: list[str]) -> None:
    cache = tmp_path / "deep" / "cache"
    write_tar(shards / "train-0.tar", [*sample(0, 0), ("\udcff.png", b"x"), *sample(1, 1)])
    plain = open_data(str(shards), skip_unreadable=True)
    assert open_data(str(shards), skip_unreadable=True, cache_dir=cache).fingerprint == plain.fingerprint
    assert len(list(cache.glob("shards-*"))) == 1
    read.clear()
    again = open_data(str(shards), skip_unreadable=True, cache_dir=cache)
    assert (again.fingerprint, read) == (plain.fingerprint, [])
    assert again.unreadable == plain.unreadable != ()
    assert again.class_names == plain.class_names
    for index in range(len(plain.train)):
        assert again.train.content(index) == plain.train.content(index)
        assert train_of(again).place(index) == train_of(plain).place(index)
        assert again.train.size_hint(index) == plain.train.size_hint(index)
    with pytest.raises(DataError, match="has no label"):
        open_data(str(shards), cache_dir=cache)


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (lambda root: os.utime(root / "val-0.tar", ns=(0, 0)), ["val-0.tar"]),
        (lambda root: (root / "train-1.tar").rename(root / "train-2.tar"), ["train-2.tar"]),
        (lambda root: numbered(root / "train-2.tar", range(2)), ["train-2.tar"]),
        (lambda root: numbered(root / "train-1.tar", range(12)), ["train-1.tar"]),
        (lambda root: (root / "train-0.tar").unlink(), []),
        (lambda root: root.rename(root.with_name("moved")).rename(root) and root.joinpath("val-0.tar").unlink(), []),
    ],
)
def test_shards_that_changed_are_read_again_and_no_others(
    shards: Path, tmp_path: Path, read: list[str], change: Callable[[Path], object], anew: list[str]
) -> None:
    open_data(str(shards), cache_dir=tmp_path)
    assert sorted(read) == ["train-0.tar", "train-1.tar", "val-0.tar"]
    change(shards)
    read.clear()
    found = open_data(str(shards), cache_dir=tmp_path)
    assert read == anew
    assert found.fingerprint == open_data(str(shards), cache_dir=tmp_path / "empty").fingerprint
    read.clear()
    assert open_data(str(shards), cache_dir=tmp_path).fingerprint == found.fingerprint
    assert read == []


def test_index_lies_beside_the_shards_and_goes_with_them(shards: Path, tmp_path: Path, read: list[str]) -> None:
    expected = open_data(str(shards)).fingerprint
    assert [path.name for path in shards.iterdir() if path.suffix != ".tar"] == [BESIDE]
    read.clear()
    assert open_data(str(shards.rename(tmp_path / "mounted elsewhere"))).fingerprint == expected
    assert read == []


def test_index_goes_to_the_cache_folder_where_the_shards_must_not_be_touched(
    shards: Path, tmp_path: Path, read: list[str]
) -> None:
    (shards / BESIDE).mkdir()  # as in a folder that only others may write to; root may write anywhere
    for _ in range(2):
        open_data(str(shards), contents=Contents(shards, tmp_path / "cache"))
    assert len(read) == 3
    assert len(list((tmp_path / "cache").glob("shards-*.npz"))) == 1
    open_data(str(shards))  # nowhere at all, which is no error
    assert len(read) == 6


def test_what_was_read_before_a_shard_that_cannot_be_is_kept(shards: Path, read: list[str]) -> None:
    (shards / "val-1.tar").write_bytes(b"no tar" * 999)
    with pytest.raises(DataError, match=r"val-1\.tar cannot be read as a tar file"):
        open_data(str(shards))
    (shards / "val-1.tar").unlink()
    read.clear()
    open_data(str(shards))
    assert read == []


def _spoil(name: str, change: Callable[[NDArray[np.void]], object]) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays[name])
        np.savez(path, **arrays)

    return spoil


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-400]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"010.png", b"xxx.xxx")),
        lambda path: path.write_bytes(pickle.dumps([1])),
        lambda path: np.savez(path, samples=np.zeros(3)),
        _spoil("samples", lambda samples: samples["offset"].__setitem__(3, 10**6)),
        _spoil("samples", lambda samples: samples["shard"].__setitem__(3, 7)),
        _spoil("samples", lambda samples: samples["name"].__setitem__(3, 10**6)),
    ],
)
def test_damaged_index_is_made_anew(shards: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    expected = open_data(str(shards), cache_dir=tmp_path / "cache").fingerprint
    (kept,) = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    damage(kept)
    assert kept.read_bytes() != content
    assert open_data(str(shards), cache_dir=tmp_path / "cache").fingerprint == expected
    assert kept.read_bytes() == content


def test_index_that_cannot_be_written_is_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"the index of the shards cannot be written to .*/file/shards-\w+\.npz \("):
        open_data(str(shards), cache_dir=tmp_path / "file")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(
        OutputError,
        match=r"npz \(No space left on device\); make room \(it needs [\d,]+ bytes, and [^\n]+--cache-dir\.$",
    ):
        open_data(str(shards), cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
