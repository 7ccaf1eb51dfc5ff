"""Blocks of remote files are shared by all who need them on this machine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convnext_deploy.data import remote_blocks
from convnext_deploy.data.remote_blocks import BLOCK, blocks_of
from convnext_deploy.data.remote_files import RemoteFile


def test_threads_that_need_the_same_block_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, count = bytes(range(256)) * (BLOCK // 256), 8
    begin, second = threading.Barrier(count), threading.Event()
    fetched: list[int] = []

    def fetch(file: RemoteFile, start: int, size: int) -> bytes:
        fetched.append(start)
        if len(fetched) > 1:
            second.set()
        second.wait(0.5)  # for the others, should they come
        return content[start : start + size]

    monkeypatch.setattr(remote_blocks, "read_part", fetch)
    blocks = blocks_of(RemoteFile("http://127.0.0.1/a.tar", BLOCK, "1"), tmp_path)

    def read(place: int) -> bytes:
        begin.wait(30)
        return blocks.read(place, 100)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(read, range(count)))
    assert found == [content[place : place + 100] for place in range(count)]
    assert fetched == [0]
