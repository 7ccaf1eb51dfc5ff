"""Files of the teacher's predictions that are damaged, or cannot be written: nothing wrong is ever used."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_deploy.errors import OutputError
from tests.system.faulty_disk import largest_file
from tests.training.test_teacher_cache import CLASSES, FILE, ROWS, batch_of, draw_logits, forbidden, open_cache


def flip(file: Path, position: int, bits: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= bits
    file.write_bytes(content)


def swap_rows(file: Path) -> None:
    size = file.stat().st_size // ROWS
    content = file.read_bytes()
    file.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut within a row": lambda file: os.truncate(file, file.stat().st_size - 5),
    "cut between rows": lambda file: os.truncate(file, file.stat().st_size // 2),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "ones": lambda file: file.write_bytes(b"\xff" * file.stat().st_size),
    "garbage": lambda file: file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size)),
    "text": lambda file: file.write_text("garbage " * file.stat().st_size),
    "shifted": lambda file: file.write_bytes(b"\0" + file.read_bytes()[:-1]),
    "rows in another order": swap_rows,
    "another epoch": lambda file: file.write_bytes(file.with_name("epoch-0001.bin").read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("top_k", [0, 5])
def test_cache_computes_again_what_is_damaged(top_k: int, damage: Callable[[Path], object], tmp_path: Path) -> None:
    logits, file = draw_logits(), tmp_path / FILE
    cache = open_cache(tmp_path, top_k)
    expected = cache(batch_of(logits))
    cache(batch_of(logits, epoch=1))
    whole = file.read_bytes()
    damage(file)
    again = open_cache(tmp_path, top_k)
    assert torch.equal(again(batch_of(logits)), expected)
    assert again.computed == ROWS
    assert file.read_bytes()[: len(whole)] == whole


@pytest.mark.parametrize("top_k", [0, 5])
def test_cache_computes_again_when_any_bit_has_changed(top_k: int, tmp_path: Path) -> None:
    logits, file = draw_logits(2), tmp_path / FILE
    expected = open_cache(tmp_path, top_k)(batch_of(logits))
    for position in range(file.stat().st_size):
        for bit in range(8):
            flip(file, position, 1 << bit)
            cache = open_cache(tmp_path, top_k)
            assert torch.equal(cache(batch_of(logits)), expected)
            assert cache.computed == 2, f"bit {bit} of byte {position} of {file.stat().st_size}"


def test_cache_says_in_one_line_that_the_disk_is_full_and_goes_on_later(tmp_path: Path) -> None:
    logits, size = draw_logits(), CLASSES * 2 + 4
    expected = open_cache(tmp_path / "whole")(batch_of(logits))
    cache, file = open_cache(tmp_path / "full"), tmp_path / "full" / FILE
    text = (
        rf"^the teacher's predictions cannot be written to {re.escape(str(file))} \(File too large\); raise the limit on "
        rf"the size of files by ulimit -f, {10 * size + 7:,} bytes \(it needs {ROWS * size:,} bytes\)[^\n]+ with --cache-dir\.$"
    )
    with largest_file(10 * size + 7), pytest.raises(OutputError, match=text):
        cache(batch_of(logits))
    assert file.stat().st_size == 10 * size + 7  # what there was room for
    assert torch.equal(open_cache(tmp_path / "full")(batch_of(logits)), expected)
    assert torch.equal(open_cache(tmp_path / "full", compute=forbidden)(batch_of(logits)), expected)


def test_cache_that_cannot_be_written_is_read_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = draw_logits()
    expected = open_cache(tmp_path)(batch_of(logits))

    really_open = os.open

    def refuse(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_WRONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    cache = open_cache(tmp_path)
    assert torch.equal(cache(batch_of(logits)), expected)
    with pytest.raises(
        OutputError, match=r"^the teacher's predictions [^\n]+ \(Read-only file system\); [^\n]+cache-dir"
    ):
        cache(batch_of(logits, epoch=1))


def test_cache_says_in_one_line_that_its_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(
        OutputError, match=r"^the teacher's predictions cannot be written to [^\n]+ \(Not a directory\);"
    ):
        open_cache(tmp_path / "taken" / "teachers")(batch_of(draw_logits()))
