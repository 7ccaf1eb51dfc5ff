"""Files as columns, and the index of what they hold: every image is opened once, and again only when it changed."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.data import contents, datasets
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import FolderImages, open_data
from convnext_deploy.data.files import Files, Listing, as_files
from convnext_deploy.data.image_folder import list_images
from convnext_deploy.data.sampling import divide_training_images
from convnext_deploy.errors import DataError
from tests.conftest import write_image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "small", train=3, validation=2)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were opened for any reason, in order."""
    found: list[str] = []
    monkeypatch.setattr(contents, "_FRESH_NS", 0)
    for name in ("examine_file", "_hash_end", "digest_file"):
        plain = getattr(contents, name)

        def watched(path: Path, plain: object = plain) -> object:
            found.append(path.name if path.parent.parent.name != "train" else f"train/{path.name}")
            return plain(path)  # type: ignore[operator]

        monkeypatch.setattr(contents, name, watched)
    return found


def test_the_second_start_opens_only_what_changed(folder: Path, tmp_path: Path, looked_at: list[str]) -> None:
    cache = tmp_path / "cache"
    first = open_data(str(folder), cache_dir=cache)
    assert len(looked_at) >= 15
    looked_at.clear()
    again = open_data(str(folder), cache_dir=cache)
    assert looked_at == []
    assert list(again.train.files) == list(first.train.files)  # type: ignore[attr-defined]
    changed = folder / "train" / "cat" / "1.png"
    shutil.copy(folder / "train" / "owl" / "0.png", changed)
    open_data(str(folder), cache_dir=cache)
    assert {*looked_at} == {"train/1.png"}
    changed.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1\.png cannot be read as an image \(not an image\)"):
            open_data(str(folder), cache_dir=cache)


def test_another_release_of_pillow_opens_all_images_again(
    folder: Path, tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_data(str(folder), cache_dir=tmp_path).fingerprint
    looked_at.clear()
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert open_data(str(folder), cache_dir=tmp_path).fingerprint == before
    assert len(looked_at) == 15


def test_two_names_of_one_file_are_one_and_both_are_named_when_it_is_damaged(
    folder: Path, looked_at: list[str]
) -> None:
    broken = folder / "train" / "cat" / "0.png"
    broken.write_bytes(b"no image")
    for name in ("7.png", "8.png"):
        os.link(broken, folder / "train" / "cat" / name)
    paths = sorted((folder / "train" / "cat").iterdir())
    found = Contents().find_unreadable(paths)
    assert [(path.name, reason) for path, reason in found] == [
        (name, "not an image") for name in ("0.png", "7.png", "8.png")
    ]


def test_a_verb_that_judges_opens_no_training_image_and_says_what_it_does_not_know(
    folder: Path, tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
    shutil.copy(folder / "val" / "owl" / "0.png", folder / "train" / "owl" / "0.png")
    data = open_data(str(folder), judges=True)
    assert data.division.repeated == (Path("val/owl/0.png"),), "the ends of files of equal size are compared"
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_FEW_TO_READ", 0)
        looked_at.clear()
        data = open_data(str(folder), judges=True)
        assert not [name for name in looked_at if name.startswith("train/")]
        assert "images as well is not known: " in data.leaks[0]
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        open_data(str(folder))


def test_choosing_calibration_images_reads_none_but_copies(
    folder: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat", "dog"):  # of the same size, all of them
        shutil.copy(folder / "val" / name / "0.png", folder / "train" / name / "1.png")
        shutil.copy(folder / "val" / name / "0.png", folder / "train" / name / "2.png")
    data = open_data(str(folder))
    looked_at.clear()
    monkeypatch.setattr(FolderImages, "content", lambda *_: pytest.fail("is read"))
    chosen = divide_training_images(data.train, data.validation, (3, 2), 0, data.contents)
    copies = [1, 2, 4, 5]
    assert (len(chosen[0]), len(chosen[1]), {*chosen[0], *chosen[1]} & {*copies}) == (3, 2, set())
    assert looked_at == []


def test_files_stand_in_the_order_of_their_paths_and_are_named_as_they_are(tmp_path: Path) -> None:
    names = ["a/b/1.png", "a/b.png", "a.png", "B.png", "a b/x.JPG", "a/b/c/2.jpeg", os.fsdecode(b"\xff.png"), "ü.png"]
    for name in [*names, ".hidden/1.png", "a/.1.png", "a/.png", "a/png", "a/1.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nothing")
    expected = sorted(tmp_path / name for name in [*names, "a/gone.png"])
    found = list_images(tmp_path)
    assert list(found) == expected
    assert list(found.names_below(tmp_path)) == [os.fsencode(path.relative_to(tmp_path)) for path in expected]
    assert found == as_files(expected)
    assert found[2:5] == expected[2:5]
    rows = np.array([6, 1, 1])
    assert found.take(rows) == [expected[row] for row in rows]
    assert found.size(expected.index(tmp_path / "a/gone.png")) == -1


def test_columns_are_mapped_by_processes_of_one_machine_and_sent_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Listing(tmp_path)
    for number in range(60_000):
        listing.add(f"class/some-longer-name-{number:06}.jpg", (number, 10 * number, 1, 2))
    files = Files(listing.finish(tmp_path), range(100, 50_000))
    whole = pickle.dumps(FolderImages(files, np.zeros(len(files), np.int8)))
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    shared = pickle.dumps(FolderImages(files, np.zeros(len(files), np.int8)))
    assert (len(whole) > 4e6, len(shared) < 60_000) == (True, True)
    for sent in (whole, shared):
        found = pickle.loads(sent)
        assert (found.paths[-1], len(found), found.size_hint(5)) == (files[-1], 49_900, 1050)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # the others are elsewhere
    assert len(pickle.dumps(files)) > 4e6
