"""Shards at gs:// and hf://: what fsspec's classes for these stores tell of files, told here by files in memory."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from convnext_deploy.data import remote_files
from convnext_deploy.data.datasets import open_data
from convnext_deploy.errors import DataError
from tests.shards import numbered

fsspec = pytest.importorskip("fsspec", reason="shards at URLs need the extra `remote`, or `test`")


class Store(fsspec.AbstractFileSystem):  # type: ignore[name-defined,misc]
    """Files in memory under names without a slash before them, as buckets and repositories have them."""

    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    reads: ClassVar[list[tuple[str, int, int]]] = []
    hash_field = ""

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        own = self._strip_protocol(path).rstrip("/") + "/"
        inside = sorted({own + name[len(own) :].split("/")[0] for name in self.files if name.startswith(own)})
        if not inside:
            raise FileNotFoundError(path)
        return [self.info(name) if detail else name for name in inside]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name in self.files:
            content = self.files[name]
            found = {"name": name, "size": len(content), "type": "file"}
            return found | {self.hash_field: hashlib.md5(content).hexdigest()}
        if any(other.startswith(f"{name}/") for other in self.files):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        assert start is not None
        assert end is not None
        self.reads.append((path, start, end))
        return self.files[self._strip_protocol(path)][start:end]


class Google(Store):
    """A bucket, with the fields of gcsfs."""

    protocol = ("gs", "gcs")
    hash_field = "md5Hash"


class HuggingFace(Store):
    """A repository, with the fields of huggingface_hub's `HfFileSystem`."""

    protocol = "hf"
    hash_field = "blob_id"


@pytest.fixture(
    params=[(Google, "gs://photos/shards"), (Google, "gcs://photos/shards"), (HuggingFace, "hf://datasets/me/photos")]
)
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind, address = request.param
    scheme = address.partition("://")[0]
    monkeypatch.setattr(remote_files, "OPEN_DELAYS_S", (0.001,))
    monkeypatch.setattr(Store, "files", {})
    monkeypatch.setattr(Store, "reads", [])
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, kind)
    return str(address)


def upload(folder: Path, address: str) -> None:
    name = address.partition("://")[2]
    Store.files.update({f"{name}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.name[0] != "."})


def test_shards_in_a_store_are_those_of_the_folder(address: str, tmp_path: Path) -> None:
    folder, cache = tmp_path / "shards", tmp_path / "cache"
    for split, start in (("train", 0), ("train", 20), ("val", 100)):
        numbered(folder / f"{split}-{start}.tar", range(start, start + 20))
    (folder / "classes.txt").write_text("cat\ndog\n")
    upload(folder, address)
    here = open_data(str(folder))
    for name in (address, Path(address), f"{address}/{{train-{{0,20}},val-100}}.tar"):
        there = open_data(str(name), cache_dir=cache)
        assert there.fingerprint == here.fingerprint
        assert there.class_names == ("cat", "dog")
        assert not any("neither an ETag" in note for note in there.notes)
    assert there.train.content(3) == here.train.content(3)
    assert len(Store.reads) == 4  # each shard and the names, once
    numbered(folder / "val-100.tar", range(200, 220))  # the same size, and another hash
    upload(folder, address)
    assert open_data(address, cache_dir=cache).fingerprint == open_data(str(folder)).fingerprint
    assert len(Store.reads) == 5  # the other shards were known
    with pytest.raises(DataError, match=r"/train-1.tar cannot be read: it does not exist \(404\); check the address"):
        open_data(f"{address}/train-{{0..1}}.tar", cache_dir=cache)
