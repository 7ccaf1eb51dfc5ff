"""Shards behind a web server are the shards of a folder: images, labels, split, order and what is kept of them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.spec import default_preprocess
from convnext_deploy.data import remote_blocks, remote_files, remote_shards, shard_streams
from convnext_deploy.data.batch_rows import EpochOrder
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.loaders import BatchPlan, TrainingBatches
from convnext_deploy.data.shards import ShardImages
from convnext_deploy.data.unlabelled import open_unlabelled
from convnext_deploy.errors import DataError, RemoteError
from convnext_deploy.system.distributed import World
from tests import http_store as store_of
from tests.http_store import Store
from tests.shards import numbered

pytest.importorskip("aiohttp", reason="shards at URLs need the extra `remote`, or `test`")
TRAIN = "/shards/train-1.tar"
LASTING = (store_of.SLOW, store_of.NO_RANGES, store_of.NO_TAG, store_of.NO_RANGE_TOLD)
"""What a server may do for good, and is read all the same."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder `shards`, with three to train and one to validate, and one `whole` without such words, partly the same."""
    root = tmp_path_factory.mktemp("served")
    for shard in range(3):
        numbered(root / "shards" / f"train-{shard}.tar", range(20 * shard, 20 * shard + 20))
    numbered(root / "shards" / "val-0.tar", range(100, 112))
    (root / "shards" / "classes.txt").write_text("cat\ndog\n")
    numbered(root / "whole" / "a.tar", range(40, 80))
    return root


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote_files, "READ_DELAYS_S", (0.001,) * 3)
    monkeypatch.setattr(remote_files, "OPEN_DELAYS_S", (0.001,) * 2)
    with store_of.serve(folder) as store:
        yield store


def failing(what: object, times: int = 99, path: str = TRAIN) -> Callable[[str, str, int], object]:
    return lambda method, asked, count: what if asked == path and count <= times else None


def refusal(name: str | Path, cache: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        open_data(str(name), cache_dir=cache, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(data: Data) -> list[tuple[bytes, int]]:
    return [
        (images.content(row), int(label))
        for images in (data.train, data.validation)
        for row, label in enumerate(images.labels)
    ]


def test_shards_at_a_url_are_those_of_the_folder(store: Store, folder: Path, tmp_path: Path) -> None:
    here, there = open_data(str(folder / "shards")), open_data(f"{store.url}/shards", cache_dir=tmp_path)
    assert there.fingerprint == here.fingerprint  # so that artifacts and scores made of one are those of the other
    assert there.judged_on == here.judged_on
    assert there.class_names == ("cat", "dog")
    assert contents(there) == contents(here)
    assert there.notes[0].startswith(f"{store.url}/shards: 4 shards, 0.00 GB; what was read of them is kept in ")
    assert store.sent < 1.1 * sum(path.stat().st_size for path in (folder / "shards").iterdir())
    store.sent = 0
    again = open_data(f"{store.url}/shards", cache_dir=tmp_path)
    assert contents(again) == contents(here)
    assert (again.fingerprint, store.sent) == (here.fingerprint, 0)  # only whether the files are the same was asked
    held_out = {"validation_fraction": 0.2, "split_seed": 3}
    whole = open_data(f"{store.url}/whole", cache_dir=tmp_path, **held_out)  # type: ignore[arg-type]
    assert whole.fingerprint == open_data(str(folder / "whole"), **held_out).fingerprint  # type: ignore[arg-type]


def test_addresses_in_webdatasets_notation(store: Store, folder: Path, tmp_path: Path) -> None:
    here = open_data(str(folder / "shards")).fingerprint
    url = f"{store.url}/shards"
    for name in (f"{url}/{{train-{{0..2}},val-0}}.tar", f"{url}/train-{{0..2}}.tar::{url}/val-0.tar", Path(f"{url}/")):
        assert open_data(str(name), cache_dir=tmp_path).fingerprint == here
    assert "Unbalanced braces" in refusal(f"{url}/train-{{0..2.tar", tmp_path)
    assert "names a shard twice" in refusal(f"{url}/val-0.tar::{url}/val-0.tar", tmp_path)
    assert "no address of a shard" in refusal(f"{url}/val-0.tar::/tmp/x.tar", tmp_path)
    assert "--labels is for image folders" in refusal(url, tmp_path, labels=folder / "labels.csv")


def batches(data: Data, epoch: int = 1, start: int = 0, world: World | None = None) -> list[torch.Tensor]:
    made = TrainingBatches(data.train, default_preprocess(32), BatchPlan(12, 2, seed=5), world=world)
    return [torch.cat([batch.images.flatten(1), batch.labels[:, None]], 1) for batch in made.epoch(epoch, start)]


def test_training_and_evaluation_see_the_same_batches(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext_deploy.data.pixel_cache.LARGEST_SIDE", 1)  # large images, loaded when they are needed
    here, there = open_data(str(folder / "shards")), open_data(f"{store.url}/shards", cache_dir=tmp_path)
    expected = batches(here)
    shutil.rmtree(tmp_path / "remote")  # as when the disk has become full
    store.asked.clear()
    store.fault = failing(store_of.BREAK, 1)  # while the training runs
    assert all(map(torch.equal, batches(there), expected))
    assert store.asked["GET", TRAIN] == 2
    assert all(map(torch.equal, batches(there, start=3), expected[3:]))  # goes on at the same image
    ours, theirs = (EvaluationBatches(data.validation, default_preprocess(32), 5) for data in (there, here))
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(ours, theirs, strict=True))
    shutil.rmtree(tmp_path / "remote")
    store.fault = failing(503)
    with pytest.raises(RemoteError, match=r"train-1.tar cannot be read: the server answers 503, in each of 4 attempts"):
        batches(there)


@pytest.mark.parametrize(
    "fault",
    [500, 503, 429, store_of.BREAK, store_of.TRUNCATE, store_of.SHORT, store_of.SHIFT, store_of.TOTAL, *LASTING],
)
def test_what_passes_costs_time_alone(store: Store, folder: Path, tmp_path: Path, fault: object) -> None:
    lasts = fault in LASTING
    answers = failing(fault, 99 if lasts else 2)
    # what is told of a file must be right
    store.fault = lambda *asked: answers(*asked) if asked[0] == "GET" or isinstance(fault, int) or lasts else None
    found = open_data(f"{store.url}/shards", cache_dir=tmp_path)
    assert found.fingerprint == open_data(str(folder / "shards")).fingerprint
    unknown = [note for note in found.notes if "neither an ETag nor a time" in note]
    assert len(unknown) == (fault == store_of.NO_TAG)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (404, r"cannot be read: it does not exist \(404\); check the address"),
        (403, r"cannot be read: the server forbids it \(403\); check the address, and the credentials"),
        (401, r"cannot be read: it wants credentials \(401\)"),
        (500, "cannot be read: the server answers 500, in each of 3 attempts; check the connection"),
        (store_of.PAGE, r"is a page \(HTML\), such as a server shows for a login or an error; expected a tar file"),
        (
            store_of.TRUNCATE,
            "cannot be read: the connection ends before all the bytes that .* have come( [(].* of .*[)])?, in each of 4 attempts",
        ),
        (
            store_of.SHIFT,
            r"cannot be read: the server answers with 'bytes 512-\d+/(\d+)' where bytes 0-\d+ of \1 were asked for, in each of 4",
        ),
        (
            store_of.TOTAL,
            r"cannot be read: the server answers with 'bytes 0-(\d+)/10{15}' where bytes 0-\1 of \d+ were asked for, in each",
        ),
        (
            store_of.LENGTH,
            "cannot be read: the server's answer is no valid HTTP [(].*Content-Length.*[)], in each of 3 attempts",
        ),
        (
            store_of.SHORT,
            "cannot be read: [0-9,]+ bytes came where [0-9,]+ of [0-9,]+ were asked for, in each of 4 attempts",
        ),
        ("http://127.0.0.1:1/x", "cannot be read: Cannot connect to host 127.0.0.1:1 .*, in each of 3 attempts"),
        ("itself", "cannot be read: the server sends from address to address without end"),
    ],
)
def test_what_lasts_is_one_line(store: Store, tmp_path: Path, fault: object, expected: str) -> None:
    store.fault = failing(f"{store.url}{TRAIN}" if fault == "itself" else fault)
    assert re.search(f"{TRAIN} {expected}", refusal(f"{store.url}/shards", tmp_path))


def test_addresses_that_hold_no_shards_are_one_line(store: Store, folder: Path, tmp_path: Path) -> None:
    assert "/nothing cannot be read: it does not exist (404)" in refusal(f"{store.url}/nothing", tmp_path)
    assert "lists no .tar or .mds files (found shards, whole); expected train-*.tar" in refusal(store.url, tmp_path)
    assert "/train-3.tar cannot be read: it does not exist" in refusal(
        f"{store.url}/shards/train-{{2..3}}.tar", tmp_path
    )
    assert "holds a password" in refusal("https://me:secret@localhost/shards", tmp_path)
    assert "foo://x/y begins with foo://, which is not known" in refusal("foo://x/y", tmp_path)
    store.fault = lambda method, path, count: store_of.PAGE if path in ("/shards", "/shards/") else None
    assert "lists no .tar or .mds files (it lists nothing)" in refusal(f"{store.url}/shards", tmp_path)
    for name, content, expected in (
        ("empty", b"", "cannot be read as a tar file (empty file)"),
        ("text", b"no tar" * 999, "cannot be read as a tar file"),
        ("cut", (folder / "whole" / "a.tar").read_bytes()[:9000], "cannot be read as a tar file"),
        ("gzip", b"\x1f\x8b" + bytes(999), "is compressed, so that no sample can be read alone"),
    ):
        (folder / name).mkdir()
        (folder / name / "a.tar").write_bytes(content)
        assert f"/{name}/a.tar {expected}" in refusal(f"{store.url}/{name}", tmp_path)
        shutil.rmtree(folder / name)


@pytest.mark.parametrize("package", ["fsspec", "aiohttp"])
def test_missing_packages_are_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'convnext_deploy[remote]'" in refusal("https://localhost/shards", tmp_path)


def test_shards_that_change_are_noticed(store: Store, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "whole", folder / "changing")
    url, file = f"{store.url}/changing", folder / "changing" / "a.tar"
    first = open_data(url, cache_dir=tmp_path)
    for block in (tmp_path / "remote").rglob("*.block"):  # what a disk loses is fetched again
        block.write_bytes(bytes(block.stat().st_size))
    assert contents(first) == contents(open_data(str(folder / "changing")))
    numbered(file, reversed(range(40, 80)))
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(DataError, match=r"changing/a.tar has changed since the data was opened; start again"):
        contents(first)
    second = open_data(url, cache_dir=tmp_path)
    assert second.fingerprint == open_data(str(folder / "changing")).fingerprint != first.fingerprint
    shutil.rmtree(folder / "changing")


def test_shards_without_labels(store: Store, folder: Path, tmp_path: Path) -> None:
    data = open_data(str(folder / "shards"))
    judging = [data.validation]
    there = open_unlabelled(f"{store.url}/whole", data.train, judging, Contents(), cache_dir=tmp_path)
    with pytest.raises(DataError, match="is new: all are among the images of the data folder"):
        open_unlabelled(f"{store.url}/shards", data.train, judging, Contents(), cache_dir=tmp_path)
    here = open_unlabelled(str(folder / "whole"), data.train, judging, Contents())
    assert (there.identify(Contents()), there.training) == (here.identify(Contents()), here.training)


def test_the_oldest_blocks_go_when_the_disk_fills_up(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_blocks, "BLOCK", 4096)
    monkeypatch.setattr(remote_blocks, "_LEAST_KEPT", 8)
    monkeypatch.setattr(remote_blocks, "_MADE_FREE", 4)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(total=1 << 30, free=1 << 10))
    here, there = open_data(str(folder / "shards")), open_data(f"{store.url}/shards", cache_dir=tmp_path)
    assert contents(there) == contents(here)
    assert len(list((tmp_path / "remote").rglob("*.block"))) <= 16  # of 50, with what several threads add
    assert there.fingerprint == here.fingerprint


@pytest.fixture
def streamed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setattr(remote_shards, "KEPT_WHOLE", 0)
    monkeypatch.setattr(shard_streams, "LANES", 3)
    monkeypatch.setattr(shard_streams, "BUFFER", 6)
    return open_data(f"{store.url}/shards", cache_dir=tmp_path)


def test_very_many_shards_are_read_one_after_another(streamed: Data, folder: Path) -> None:
    train = streamed.train
    assert isinstance(train, ShardImages)
    assert any("another order than that of a folder" in note for note in streamed.notes)
    here = open_data(str(folder / "shards"))
    assert streamed.fingerprint != here.fingerprint  # another order is another training
    assert streamed.validation_fingerprint == here.validation_fingerprint  # but scores are the same
    orders = [np.stack(list(EpochOrder(train, 7, 0, epoch))) for epoch in range(3)]
    for order in orders:
        assert order.shape == (8, 7)
        assert len(np.unique(order)) == 56
        shards = train.index.samples["shard"][train.rows][order]
        places = train.index.samples["offset"][train.rows][order]
        for first, last in ((0, 2), (2, 4), (4, 7)):  # the rows of a lane
            own, where = shards[:, first:last].ravel(), places[:, first:last].ravel()
            assert len(np.unique(own)) <= 2
            begun = [int(np.flatnonzero(own == shard)[0]) for shard in np.unique(own)]
            ended = [int(np.flatnonzero(own == shard)[-1]) for shard in np.unique(own)]
            if len(begun) == 2:
                early = int(np.argmin(begun))
                assert ended[early] - begun[1 - early] < 6  # only within the buffer both are open
            assert any((np.diff(where[own == shard]) < 0).any() for shard in np.unique(own))  # shuffled within it
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], np.stack(list(EpochOrder(train, 7, 0, 1))))


def test_streams_are_the_same_for_any_number_of_processes(streamed: Data) -> None:
    alone = batches(streamed)
    parts = [batches(streamed, world=World(rank, 3)) for rank in range(3)]
    assert all(torch.equal(torch.cat(rows), whole) for *rows, whole in zip(*parts, alone, strict=True))
    assert all(map(torch.equal, batches(streamed, start=2), alone[2:]))
    order = np.stack(list(EpochOrder(streamed.train, 12, 5, 1)))
    assert isinstance(streamed.train, ShardImages)
    shards = streamed.train.index.samples["shard"][streamed.train.rows][order]
    assert all(len(np.unique(shards[:, 4 * rank : 4 * rank + 4])) <= 2 for rank in range(3))  # each reads its own lanes


@pytest.mark.heavy
def test_processes_that_load_images_share_what_was_fetched(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext_deploy.data.pixel_cache.LARGEST_SIDE", 1)
    there = open_data(f"{store.url}/shards", cache_dir=tmp_path)
    shutil.rmtree(tmp_path / "remote")
    store.asked.clear()
    made = TrainingBatches(there.train, default_preprocess(32), BatchPlan(6, 2, seed=5), workers=3)
    found = torch.cat([batch.images for batch in made.epoch(0)])
    made.close()
    here = TrainingBatches(open_data(str(folder / "shards")).train, default_preprocess(32), BatchPlan(6, 2, seed=5))
    assert torch.equal(found, torch.cat([batch.images for batch in here.epoch(0)]))
    assert all(store.asked["GET", f"/shards/train-{shard}.tar"] == 1 for shard in range(3))
    assert os.listdir(tmp_path / "remote")  # noqa: PTH208
