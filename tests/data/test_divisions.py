"""Which images train, which validate and which are the test: by folders, by the lists in a file, and by groups."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.data.datasets import Data, ImageSet, name_images, open_data
from convnext_deploy.errors import DataError
from tests.conftest import CLASSES, write_image_folder
from tests.shards import make_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images a class to train on and two to validate on; no two are alike."""
    return write_image_folder(tmp_path / "photos", train=6, validation=2)


def names(data: Data, images: ImageSet | None) -> set[str]:
    assert images is not None
    return {name.split("/", 1)[1] for name in name_images(images, Path(data.name))}


def refusal(folder: Path, **asked: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(folder), **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_split_is_used_for_what_it_is_called(folder: Path) -> None:
    (folder / "val").rename(folder / "valid")
    test = write_image_folder(folder.parent / "other", CLASSES, 1, 5) / "val"
    shutil.rmtree(test / "cat")  # a test may lack a class
    test.rename(folder / "test")
    (folder / "dev").mkdir()
    data = open_data(str(folder))
    assert (len(data.train), len(data.validation), data.split) == (18, 6, None)
    assert data.test is not None
    assert data.test.labels.tolist() == [1] * 5 + [2] * 5
    assert data.notes[:2] == (
        f"{folder}: 18 images to train on from train/, 6 images to validate on from valid/, 10 images for the test, once at the "
        "end from test/",
        f"{folder}: dev/ not used",
    )
    (folder / "val").mkdir()
    assert "has both val/ and valid/; move one of them away" in refusal(folder)


def test_a_test_without_labels_is_not_read_and_one_of_other_classes_is_refused(folder: Path) -> None:
    (folder / "test").mkdir()
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "test")  # as competitions hand them out
    data = open_data(str(folder))
    assert (len(data.validation), data.test) == (6, None)
    assert f"{folder}: test/, which has no folders of classes, not used" in data.notes
    (folder / "test" / "unknown").mkdir()
    (folder / "test" / "0.png").rename(folder / "test" / "unknown" / "0.png")
    assert f"class 'unknown' of {folder / 'test'} has no images in {folder / 'train'}; name" in refusal(folder)


def test_images_on_both_sides_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "val" / "cat" / "again.png")
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "val" / "dog" / "other.png")  # under another class, too
    for data in (open_data(str(folder)), open_data(str(make_shards(folder, tmp_path / "shards")))):
        (leak,) = data.leaks
        assert leak.startswith("2 of the 8 images that judge are among the training images as well (")
        assert "cat/again.png" in leak
        assert "dog/other.png" in leak
        assert leak in data.notes
    (folder / "val" / "cat" / "again.png").unlink()
    (folder / "val" / "dog" / "other.png").unlink()
    assert open_data(str(folder)).leaks == ()


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_the_lists_in_a_file_divide_the_images(kind: str, folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "val")
    where = folder if kind == "folder" else make_shards(folder, tmp_path / "shards")
    chosen = [f"{name}/{number}.png" for name in CLASSES for number in (1, 4)]
    text = tmp_path / "val.txt"
    text.write_text("\n".join([f"./{chosen[0]}", *(name.replace("/", "\\") for name in chosen[1:]), ""]))
    data = open_data(str(where), split_file=text)
    assert names(data, data.validation) == set(chosen)
    assert (len(data.train), len(data.validation), data.test) == (12, 6, None)
    assert data.split is not None
    assert f"6 images to validate on from the lists in {text}" in data.notes[0]
    lists = {"train": [f"{name}/0.png" for name in CLASSES], "valid": chosen, "test": ["cat/2.png", "owl/3.png"]}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    data = open_data(str(where), split_file=tmp_path / "split.json")
    assert data.test is not None
    assert [len(images) for images in (data.train, data.validation, data.test)] == [3, 6, 2]
    assert data.test.labels.tolist() == [0, 2]
    assert f"{where}: 7 images are in none of the lists and not used" in data.notes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (["cat/9.png"], "names 'cat/9.png', which is no image of the data"),
        (["0.png"], "names '0.png', which is 6 images of the data"),
        (["train/cat/0.png", "cat/5.png", "cat/5.png"], "names 'cat/5.png' twice"),
        ({"train": ["cat/5.png"], "val": ["cat/5.png"]}, "names 'cat/5.png' twice; an image can be on one side only"),
        (["train/cat/0.png"], "class 'dog' has no images in the validation list of"),
        ({"train": ["cat/5.png"]}, "names no validation images"),
        ({"val": ["cat/5.png"], "extra": []}, "'extra' is no split"),
        ({"val": "cat/5.png"}, "'val' is not a list of names"),
        ([], "names no validation images"),
    ],
)
def test_lists_that_do_not_fit_are_refused(content: Any, reason: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    found = refusal(folder, split_file=path)
    assert reason in found
    assert str(path) in found


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_groups_stay_on_one_side(kind: str, folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "val")
    for number in range(6):  # three patients, with images of every class
        for name in CLASSES:
            (folder / "train" / name / f"{number}.png").rename(folder / "train" / name / f"p{number % 3}-{number}.png")
    where = folder if kind == "folder" else make_shards(folder, tmp_path / "shards")
    for seed in range(4):
        data = open_data(str(where), split_seed=seed, validation_fraction=0.3, groups=r"(p\d)-")
        patients = [{name.split("/p")[1][0] for name in names(data, side)} for side in (data.train, data.validation)]
        assert [len(side) for side in patients] == [2, 1]
        assert not patients[0] & patients[1]
        assert len(data.validation) == 6
    assert "groups by '(p\\d)-' together" in data.notes[0]
    alone = {open_data(str(where), split_seed=seed).validation.labels.tolist() == [0, 1, 2] for seed in range(4)}
    assert alone == {True}  # without groups: a tenth of each class, whoever it is


def test_groups_that_cannot_be_divided_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    assert "finds nothing in cat/0.png; every image needs a group" in refusal(folder, groups="p[0-9]+")
    assert "finds nothing in cat/0.png; every image needs a group" in refusal(folder, groups="(p[0-9]+)?")
    assert "is not a regular expression" in refusal(folder, groups="(")
    assert "class 'cat' has no group of images that can be held out" in refusal(folder, groups=r"^\w+")


def test_groups_on_both_sides_are_counted_and_named(folder: Path) -> None:
    (leak,) = open_data(str(folder), groups=r"(\d)\.png").leaks
    assert leak.startswith("2 groups have images to train on and images that judge (0, 1)")
