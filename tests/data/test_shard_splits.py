"""Which tar shards are for training and which for validation, and which samples are held out where there are none of the latter."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.data import shards
from convnext_deploy.data.datasets import open_data
from convnext_deploy.data.shard_index import ShardIndex, read_sample
from convnext_deploy.data.splits import Split
from convnext_deploy.errors import DataError
from tests.conftest import CLASSES, write_image_folder
from tests.shards import make_shards, numbered, places, png, write_tar


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An image folder without validation images, with copies within and between classes."""
    root = write_image_folder(tmp_path / "whole", train=20, validation=1)
    shutil.rmtree(root / "val")
    for index in range(4):
        shutil.copy(root / "train" / "cat" / f"{index}.png", root / "train" / "cat" / f"copy-{index}.png")
        shutil.copy(root / "train" / "dog" / f"{index}.png", root / "train" / "owl" / f"dog-{index}.png")
    return root


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(path))
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("fraction", "seed"), [(0.1, 0), (0.3, 1), (0.5, 2)])
@pytest.mark.parametrize("samples", [3, 1000])
def test_held_out_images_are_those_of_the_folder(
    whole: Path, tmp_path: Path, fraction: float, seed: int, samples: int
) -> None:
    shards = make_shards(whole, tmp_path / "shards", samples)
    data = open_data(str(shards), validation_fraction=fraction, split_seed=seed)
    expected = open_data(str(whole), validation_fraction=fraction, split_seed=seed)
    assert places(data.train) == places(expected.train)
    assert places(data.validation) == places(expected.validation)
    assert data.split == expected.split == Split(fraction, seed)
    assert data.notes == tuple(
        note.replace(str(whole), str(shards)).replace("validation folder", "validation shards")
        for note in expected.notes
    )


def test_names_as_tar_writes_them_are_held_out_alike(whole: Path, tmp_path: Path) -> None:
    files = []
    for label, name in enumerate(CLASSES):
        for path in (whole / "train" / name).iterdir():
            files += [(f"./{name}/{path.stem}.cls", b"%d" % label), (f"./{name}/{path.name}", path.read_bytes())]
    write_tar(tmp_path / "shards" / "0.tar", files)
    assert places(open_data(str(tmp_path / "shards")).validation) == places(open_data(str(whole)).validation)


def test_shards_that_each_count_from_0_hold_out_different_places(tmp_path: Path) -> None:
    for shard in range(10):
        files = [(f"{n}.{suffix}", png(shard * 20 + n) if suffix == "png" else b"%d" % (n % 2)) for n in range(20)
                 for suffix in ("png", "cls")]  # fmt: skip
        write_tar(tmp_path / f"{shard}.tar", files)
    data = open_data(str(tmp_path))
    assert np.bincount(data.validation.labels).tolist() == [10, 10]
    assert len(places(data.validation)) > 8


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (("train-000000.tar", "train-000001.tar", "val-000000.tar"), 2, ("val-000000.tar",)),
        (("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"), 1, ("imagenet1k-validation-00.tar",)),
        (("train/0.tar", "train/1.tar", "validation/0.tar", "test/0.tar"), 2, ("validation/0.tar",)),
        (("train.tar", "test_0.TAR", ".val-0.tar", "val-0.tar.part"), 1, ("test_0.TAR",)),
        (("train0.tar", "val0.tar", "test0.tar", "dev0.tar"), 1, ("val0.tar",)),
        (("latest-0.tar", "trains-1.tar"), 2, ()),
        (("train-0.tar", "train-1.tar"), 2, ()),
    ],
)
def test_names_of_shards_tell_the_splits(
    tmp_path: Path, names: tuple[str, ...], train: int, validation: tuple[str, ...]
) -> None:
    for index, name in enumerate(names):
        numbered(tmp_path / name, range(10 * index, 10 * index + 10))
    (tmp_path / "old.tar").mkdir()
    data = open_data(str(tmp_path))
    assert len(data.train) + (0 if validation else len(data.validation)) == 10 * train
    assert (data.split is None) == bool(validation)
    numbers = {10 * names.index(name) + index for name in validation for index in range(10)}
    assert not validation or places(data.validation) == {f"{number:03}.png" for number in numbers}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("val-0.tar", "test-0.tar"), "has no train-*.tar; found test-0.tar, val-0.tar. Expected train-*.tar and"),
        (("train-0.tar", "dev-0.tar"), "has shards that are for neither training nor validation, such as dev-0.tar"),
        (("train-0.tar", "val-0.tar", "extra-0.tar"), "neither training nor validation, such as extra-0.tar. Expected"),
        (("train-0.tar", "val-1.tar.gz"), "val-1.tar.gz is compressed, so that no sample can be read alone; unpack it"),
        (("x.tgz",), "x.tgz is compressed, so that"),
    ],
)
def test_shards_of_unknown_splits_are_refused(tmp_path: Path, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        numbered(tmp_path / name, range(4))
    assert reason in refusal(tmp_path)


def test_only_images_that_may_be_equal_are_read_in_full(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_shards(whole, tmp_path / "shards", 9)
    read = []

    def recorded(index: ShardIndex, row: int) -> bytes:
        read.append(index.name(row).decode())
        return read_sample(index, row)

    monkeypatch.setattr(shards, "read_sample", recorded)
    open_data(str(folder))
    copied = {f"{name}/{index}.png" for name in ("cat", "dog") for index in range(4)}
    copies = {name for index in range(4) for name in (f"cat/copy-{index}.png", f"owl/dog-{index}.png")}
    assert set(read) == copied | copies
