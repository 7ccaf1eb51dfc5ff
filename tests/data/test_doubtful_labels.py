"""Labels that can be read and may be wrong: vectors, numbers in an order, those of another folder, and those never shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convnext_deploy.data.datasets import open_data
from tests.data.test_label_files import LABELS, table, write
from tests.data.test_sources import refusal

VECTORS = {
    "csv": ("labels.csv", table("filename,labels", lambda n: f'{n}.png,"[{n % 2}, 0, {n % 3 > 0:d}]"')),
    "csv of NumPy": ("labels.csv", table("filename,labels", lambda n: f"{n}.png,[{n % 2}. 0. {n % 3 > 0:d}.]")),
    "json": ("labels.json", json.dumps({f"{n}.png": [n % 2, 1 - n % 2] for n in range(20)})),
    "json with images without": ("labels.json", json.dumps({f"{n}.png": [1, 0] if n % 3 else [] for n in range(20)})),
}


@pytest.mark.parametrize("form", VECTORS)
def test_a_vector_of_0_and_1_is_no_list_of_labels(form: str, tmp_path: Path) -> None:
    """It was read as the labels '0' and '1', which every image has: mAP 100 %."""
    name, text = VECTORS[form]
    found = refusal(write(tmp_path, {name: text}))
    assert f"the labels of each image are {2 + ('csv' in form)} times 0 or 1, an answer for each class" in found
    assert "or a column of 0 and 1 for each" in found


def test_labels_called_0_and_1_are_lists_where_their_number_differs(tmp_path: Path) -> None:
    text = table("filename,labels", lambda n: f"{n}.png,{['0|1', '0', '1', ''][n % 4]}")
    assert open_data(str(write(tmp_path, {"labels.csv": text}))).class_names == ("0", "1")


def test_labels_that_are_numbers_come_in_their_order(tmp_path: Path) -> None:
    """Also where one file lacks some; other names come in the order of their characters."""
    names = [f"{side}_{n}.png" for side in ("train", "val") for n in range(12)]
    train = "\n".join(
        ["filename,labels", *(f"train_{n}.png,{n}|{11 - n if n != 2 else 4}" for n in range(12) if n != 9)]
    )
    val = "\n".join(["filename,labels", *(f"val_{n}.png,{n}|0" for n in range(12))])
    data = open_data(str(write(tmp_path / "a", {"train.csv": train, "val.csv": val}, names)))
    assert data.class_names == tuple(map(str, range(12)))
    assert data.numbered
    assert (
        "no training image has 9: that is not learned, and counts in mAP where validation images have it" in data.notes
    )
    for images in (data.train, data.validation):
        assert images.labels.shape[1] == 12
    assert data.validation.labels[:, 10].tolist() == [0, 0, 1] + [0] * 9  # val_10.png is the third by name
    words = table("filename,labels", lambda n: f"{n}.png,class{[1, 2, 10][n % 3]}")
    other = open_data(str(write(tmp_path / "b", {"labels.csv": words})))
    assert (other.class_names, other.numbered) == (("class1", "class10", "class2"), False)


def test_labels_of_another_folder_are_not_taken_in_silence(tmp_path: Path) -> None:
    """They fit by the names of the files alone; the folders above the data, and those beside the file, are no others."""
    names = [f"imgs/{n}.png" for n in range(20)]

    def note(root: Path, prefix: str, name: str = "labels.csv") -> list[str]:
        text = table("filename,labels", lambda n: f"{prefix}imgs/{n}.png,{LABELS[n]}")
        data = open_data(str(write(root, {name: text}, names)), labels=root / name)
        assert len(data.train) + len(data.validation) == 20
        return [note for note in data.notes if "name folders that are not there" in note]

    root = tmp_path / "day2"
    assert note(root, "day1/") == [
        "20 rows name folders that are not there, which are left out (first: day1/imgs/0.png is taken for imgs/0.png): make sure "
        "that they are of these images"
    ]
    for prefix in ("", "day2/", f"{root}/", "./"):
        assert note(root, prefix) == []
    assert note(root, "../", "annotations/labels.csv") == []


def test_a_label_that_no_training_image_has_is_said_once_and_only_then(tmp_path: Path) -> None:
    sides = ["val" if "owl" in LABELS[n] else "train" for n in range(20)]
    text = table("filename,labels,split", lambda n: f"{n}.png,{LABELS[n]},{sides[n]}")
    found = [
        note
        for note in open_data(str(write(tmp_path / "a", {"labels.csv": text}))).notes
        if "no training image" in note
    ]
    assert found == [
        "no training image has owl: that is not learned, and counts in mAP where validation images have it"
    ]
    whole = open_data(
        str(write(tmp_path / "b", {"labels.csv": table("filename,labels", lambda n: f"{n}.png,{LABELS[n]}")}))
    )
    assert not any("no training image" in note for note in whole.notes)
