"""Data is known by what it holds: not by where it lies, how that is written, or when it was written."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from convnext_deploy.data import contents
from convnext_deploy.data.contents import BLOCK, BLOCKS, Contents, digest_file
from convnext_deploy.data.contents_table import load_table
from convnext_deploy.data.datasets import open_data
from convnext_deploy.errors import DataError
from convnext_deploy.system.cache_folder import remove_unused
from tests.conftest import CLASSES, write_image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "small", train=3, validation=2)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order."""
    found: list[Path] = []

    def digest(path: Path) -> bytes:
        found.append(path)
        return digest_file(path)

    monkeypatch.setattr(contents, "digest_file", digest)
    return found


def edit_in_place(path: Path) -> None:
    """Change a byte and nothing that a user could set: name, size and time of modification stay."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    assert path.stat().st_mtime_ns == status.st_mtime_ns


def test_fingerprint_is_the_same_however_and_wherever(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "scratch" / "job-17"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*"):
        os.utime(path, ns=(0, 0))
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    found = set()
    for name in ("small", "./small/", "small/../small", str(folder), str(copy), "link", "."):
        if name == ".":
            monkeypatch.chdir(folder)
        data = open_data(name)
        found.add((data.fingerprint, data.validation_fingerprint))
    assert len(found) == 1


@pytest.mark.parametrize("options", [{"groups": r"\d"}, {"split_file": "lists.txt"}, {"validation_fraction": 0.3}])
def test_fingerprint_of_a_chosen_split_is_that_of_the_copy_with_a_copied_list(
    tmp_path: Path, options: dict[str, object]
) -> None:
    found = []
    for place in ("a", "b/c"):
        root = write_image_folder(tmp_path / place / "images", train=4)
        shutil.rmtree(root / "val")
        lists = tmp_path / place / "lists.txt"
        lists.write_text("".join(f"{name}/1.png\n" for name in CLASSES))
        own = {**options, "split_file": lists} if "split_file" in options else options
        found.append(open_data(str(root), **own).fingerprint)  # type: ignore[arg-type]
    assert found[0] == found[1]
    assert found[0] != open_data(str(root), validation_fraction=0.5).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda root: edit_in_place(root / "train" / "cat" / "0.png"),
        lambda root: edit_in_place(root / "val" / "owl" / "1.png"),
        lambda root: shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "1.png"),
        lambda root: (root / "train" / "cat" / "2.png").rename(root / "train" / "cat" / "3.png"),
    ],
    ids=["edited", "validation", "replaced", "renamed"],
)
@pytest.mark.parametrize("cached", [True, False])
def test_fingerprint_changes_with_any_content_also_where_all_times_stay(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_FRESH_NS", 0)
    cache = tmp_path / "cache" if cached else None
    before = open_data(str(folder), cache_dir=cache).fingerprint
    assert open_data(str(folder), cache_dir=cache).fingerprint == before
    change(folder)
    assert open_data(str(folder), cache_dir=cache).fingerprint != before


def test_validation_fingerprint_stays_when_a_training_image_changes(folder: Path) -> None:
    before = open_data(str(folder))
    assert before.fingerprint != before.validation_fingerprint
    edit_in_place(folder / "train" / "cat" / "0.png")
    assert open_data(str(folder)).validation_fingerprint == before.validation_fingerprint


def test_files_are_read_once_and_then_only_those_that_changed(
    folder: Path, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_FRESH_NS", 0)
    cache = tmp_path / "cache"
    first = open_data(str(folder), cache_dir=cache)
    assert first.fingerprint == first.in_order(CLASSES, "a file").fingerprint
    assert first.in_order(tuple(reversed(CLASSES)), "a file").fingerprint != first.fingerprint
    assert (len(reads), len({*reads})) == (15, 15)
    assert pickle.loads(pickle.dumps(first)).in_order(CLASSES, "a file").fingerprint == first.fingerprint
    assert open_data(str(folder), cache_dir=cache).fingerprint == first.fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(moved)
    assert len(reads) == 15
    (moved / "train" / "cat" / "0.png").touch()
    assert open_data(str(moved), cache_dir=cache).fingerprint == first.fingerprint
    assert open_data(str(moved), cache_dir=cache).fingerprint == first.fingerprint
    assert len(reads) == 30  # another place has a file of its own
    edit_in_place(moved / "val" / "cat" / "0.png")
    assert open_data(str(moved), cache_dir=cache).fingerprint != first.fingerprint
    assert reads[30:] == [moved / "val" / "cat" / "0.png"]


def test_what_changed_just_now_is_read_again(folder: Path, tmp_path: Path, reads: list[Path]) -> None:
    first = open_data(str(folder), cache_dir=tmp_path / "cache").fingerprint
    assert open_data(str(folder), cache_dir=tmp_path / "cache").fingerprint == first
    assert len(reads) == 30  # a file may change twice within one tick of the clock of its file system
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [lambda c: c[:-7], lambda c: c[:40] + bytes([c[40] ^ 1]) + c[41:], lambda _: b""])
def test_a_damaged_cache_is_made_anew(
    folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_FRESH_NS", 0)
    first = open_data(str(folder), cache_dir=tmp_path / "cache").fingerprint
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert open_data(str(folder), cache_dir=tmp_path / "cache").fingerprint == first
    assert len(file.read_bytes()) == len(whole)
    assert list((tmp_path / "cache").iterdir()) == [file]


def test_a_cache_that_cannot_be_written_costs_time_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert open_data(str(folder), cache_dir=tmp_path / "file").fingerprint == open_data(str(folder)).fingerprint


def test_of_large_files_blocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "LARGEST_WHOLE", 4 * BLOCK)
    size = 2 * BLOCKS * BLOCK + 12_345
    paths = [tmp_path / name for name in "abcde"]
    places = (None, 0, size - 1, size // 2 // BLOCK * BLOCK, None)
    for path, place in zip(paths, places, strict=True):
        with path.open("wb") as stream:
            stream.truncate(size + (path.name == "e"))
            if place is not None:
                stream.seek(place)
                stream.write(b"\1")
    digests = [bytes(digest) for digest in Contents().read(paths)]
    assert len({*digests[:3], digests[4]}) == 4, "the first byte, the last one and the size count"
    assert digests == [digest_file(path) for path in paths]


def test_a_file_that_is_gone_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png cannot be read \(No such file"):
        Contents().read([tmp_path / "gone.png"])
    with pytest.raises(DataError, match=r"gone.png cannot be read \(No such file"):
        digest_file(tmp_path / "gone.png")


def test_nothing_is_read_of_no_files() -> None:
    assert Contents().read([]).shape == (0,)


def test_indexes_that_were_not_used_for_longest_go(tmp_path: Path) -> None:
    names = [f"contents-{number}.bin" for number in range(3)] + ["shards-3.npz", "contents-4.bin"]
    for age, name in enumerate((*names, "others.bin")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (0, time.time() - 86400 * (10 - age)))
    load_table(tmp_path / names[0])  # damaged, and yet used: as new
    os.utime(tmp_path / names[4])
    remove_unused(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[4], "others.bin"}
    remove_unused(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[4], "others.bin"}  # what is new stays
    remove_unused(tmp_path / "missing", 0)
