"""Shards in a bucket: an S3 server on this machine (moto), asked by fsspec as Amazon's is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext_deploy.data import remote_files
from convnext_deploy.data.datasets import open_data
from convnext_deploy.errors import DataError
from tests.shards import numbered

WHY = "an S3 server on this machine needs the extra `test-s3`"
s3fs = pytest.importorskip("s3fs", reason=WHY)
moto_server = pytest.importorskip("moto.server", reason=WHY)

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_files, "OPEN_DELAYS_S", (0.01,))
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("photos")
    yield "s3://photos/shards"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_shards_in_a_bucket_are_those_of_the_folder(bucket: str, tmp_path: Path) -> None:
    for split, start in (("train", 0), ("train", 20), ("val", 100)):
        numbered(tmp_path / "shards" / f"{split}-{start}.tar", range(start, start + 20))
    (tmp_path / "shards" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"s3://photos/shards cannot be read: it does not exist \(404\)"):
        open_data(bucket, cache_dir=tmp_path / "cache")
    s3fs.S3FileSystem().put(str(tmp_path / "shards"), "photos/shards", recursive=True)
    here = open_data(str(tmp_path / "shards"))
    for name in (bucket, Path(bucket), f"{bucket}/{{train-{{0,20}},val-100}}.tar"):
        there = open_data(str(name), cache_dir=tmp_path / "cache")
        assert there.fingerprint == here.fingerprint
        assert there.class_names == ("cat", "dog")
        assert not any("neither an ETag" in note for note in there.notes)
    numbered(tmp_path / "shards" / "val-100.tar", range(200, 220))  # the same size, and another ETag
    s3fs.S3FileSystem().put(str(tmp_path / "shards" / "val-100.tar"), "photos/shards/val-100.tar")
    assert (
        open_data(bucket, cache_dir=tmp_path / "cache").fingerprint == open_data(str(tmp_path / "shards")).fingerprint
    )
    with pytest.raises(DataError, match=r"s3://photos/shards/train-1.tar cannot be read: it does not exist \(404\)"):
        open_data(f"{bucket}/train-{{0..1}}.tar", cache_dir=tmp_path / "cache")
