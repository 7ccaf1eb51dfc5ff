"""Files of labels that people have: lists with any separator, columns of 0 and 1, JSON, COCO; and what they do not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import Data, FolderImages, open_data
from convnext_deploy.data.multi_label_split import hold_out_labels
from convnext_deploy.data.splits import Split
from convnext_deploy.errors import DataError

LABELS = ["cat dog", "cat", "dog owl", ""] * 5
NAMES = [f"images/{number}.png" for number in range(20)]


def write(root: Path, texts: Mapping[str, str], names: list[str] = NAMES) -> Path:
    """Write small images, all different, and text files."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (number, 7, 9)).save(root / name)
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def table(head: str, row: Any) -> str:
    return "\n".join([head, *(row(number) for number in range(20))])


def told(data: Data) -> dict[str, set[str]]:
    """Return the labels of every image by its name."""
    found = {}
    for images in (data.train, data.validation, *([] if data.test is None else [data.test])):
        assert isinstance(images, FolderImages)
        for path, row in zip(images.paths, images.labels, strict=True):
            found[path.stem] = {name for name, has in zip(data.class_names, row, strict=True) if has == 1}
    return found


def lists(separator: str) -> str:
    return table("filename,labels", lambda n: f'{n}.png,"{LABELS[n].replace(" ", separator)}"')


FORMS: dict[str, tuple[str, str]] = {
    "spaces": ("labels.csv", lists(" ")),
    "pipes": ("labels.csv", lists("|")),
    "semicolons": ("labels.csv", lists("; ")),
    "commas in quotes": ("labels.csv", lists(", ")),
    "a list of Python": (
        "labels.csv",
        table("path,labels", lambda n: f'images/{n}.png,"{LABELS[n].split()}"'),
    ),
    "between semicolons": ("labels.csv", table("filename;labels", lambda n: f"{n}.png;{LABELS[n].replace(' ', ',')}")),
    "names without a suffix": ("train.csv", table("image_name,tags", lambda n: f"{n},{LABELS[n]}")),
    "ChestX-ray14": (
        "labels.csv",
        table(
            "Image Index,Finding Labels,Follow-up #",
            lambda n: f"{n}.png,{LABELS[n].replace(' ', '|') or 'No Finding'},{n}",
        ),
    ),
    "columns": (
        "_classes.csv",
        table("filename, cat, dog, owl", lambda n: f"{n}.png, " + ", ".join(f"{c in LABELS[n]:d}" for c in ("cat", "dog", "owl"))),
    ),
    "of Excel": ("labels.csv", "sep=;\r\n" + table("filename;labels", lambda n: f"{n}.png;{LABELS[n]}").replace("\n", "\r\n")),
    "ends of lines of old": ("labels.csv", lists(" ").replace("\n", "\r")),
    "nan where there is none": ("labels.csv", table("filename,labels", lambda n: f"{n}.png,{LABELS[n] or 'nan'}")),
    "columns of yes and no, and row numbers": (
        "labels.csv",
        table("Unnamed: 0,filename,,cat,dog,owl", lambda n: f"{n % 2},{n}.png,{n % 2},"
              + ",".join("yY"[n % 2] if c in LABELS[n] else "n" for c in ("cat", "dog", "owl"))),
    ),
    "a row for each label": (
        "labels.csv",
        "image,label\n" + "\n".join(f"{n}.png,{label}" for n in range(20) for label in LABELS[n].split() or [""]),
    ),
    "no line of names": ("labels.csv", "\n".join(f"{n}.png,{LABELS[n]}" for n in range(20))),
    "JSON": ("labels.json", json.dumps({f"{n}.png": LABELS[n].split() for n in range(20)})),
    "records": ("labels.json", json.dumps([{"file": f"{n}.png", "labels": LABELS[n].split()} for n in range(20)])),
    "lines of JSON": (
        "metadata.jsonl",
        "\n".join(json.dumps({"file_name": NAMES[n], "labels": LABELS[n].split()}) for n in range(20)),
    ),
    "COCO": (
        "annotations/instances.json",
        json.dumps(
            {
                "images": [{"id": 100 + n, "file_name": f"{n}.png"} for n in range(20)],
                "categories": [{"id": 3 * k, "name": name} for k, name in enumerate(["above", "cat", "dog", "owl"])],
                "annotations": [
                    {"id": n, "image_id": 100 + n, "category_id": 3 * ["cat", "dog", "owl"].index(label) + 3}
                    for n in range(20)
                    for label in 2 * LABELS[n].split()
                ],
            }
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_tells_the_same_labels(form: str, tmp_path: Path) -> None:
    name, text = FORMS[form]
    data = open_data(str(write(tmp_path, {name: text})), labels=tmp_path / name)
    assert data.multi_label
    assert data.class_names == ("cat", "dog", "owl")
    assert told(data) == {str(n): set(LABELS[n].split()) for n in range(20)}
    assert data.notes[0] == f"labels of 20 images from {tmp_path / name}"


def test_a_file_of_a_usual_name_is_found_where_folders_tell_no_classes(tmp_path: Path) -> None:
    found = open_data(str(write(tmp_path / "a", {"labels.csv": lists(" ")})))
    assert found.multi_label
    assert "labels are separated by spaces" in found.notes
    folders = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)]
    beside = open_data(str(write(tmp_path / "b", {"labels.csv": lists(" ")}, folders)))
    assert not beside.multi_label
    file = tmp_path / "b" / "labels.csv"
    assert (
        beside.notes[0]
        == f"{file} is not used, because the images lie in folders of classes; --labels takes the labels from it"
    )


def test_one_label_for_every_image_is_the_usual_data_of_classes(tmp_path: Path) -> None:
    names = ["traffic light", "stop sign"]
    one = open_data(
        str(write(tmp_path / "a", {"labels.csv": table("file,label", lambda n: f"{n}.png,{names[n % 2]}")}))
    )
    assert (one.multi_label, one.class_names) == (False, ("stop sign", "traffic light"))
    assert one.train.labels.shape == (18,)
    assert any("'traffic light' are taken whole" in note for note in one.notes)
    numbers = open_data(str(write(tmp_path / "b", {"labels.csv": table("file,label", lambda n: f"{n}.png,{n % 2}")})))
    assert (numbers.multi_label, numbers.class_names) == (False, ("0", "1"))
    answers = table("file,nodule", lambda n: f"{n}.png,{['1', '0', ''][n % 3]}")
    question = open_data(str(write(tmp_path / "c", {"labels.csv": answers})))
    assert (question.multi_label, question.class_names) == (False, ("not nodule", "nodule"))
    assert "6 rows do not tell it and are not used" in question.notes
    columns = one.as_multi_label()
    assert columns.train.labels.sum(axis=1).tolist() == [1] * 18


def test_splits_come_from_a_column_from_files_or_from_folders(tmp_path: Path) -> None:
    sides = ["train", "val", "test"]
    column = open_data(
        str(
            write(
                tmp_path / "a",
                {"labels.csv": table("fname,labels,split", lambda n: f"{n}.png,{LABELS[n]},{sides[n % 3]}")},
            )
        )
    )
    assert (len(column.train), len(column.validation), len(column.test or ())) == (7, 7, 6)
    fastai = open_data(
        str(
            write(
                tmp_path / "b",
                {"train.csv": table("fname,labels,is_valid", lambda n: f"{n}.png,{LABELS[n]},{n % 4 == 0}")},
            )
        )
    )
    assert (len(fastai.train), len(fastai.validation), fastai.split) == (15, 5, None)
    names = [f"{side}/{n}.png" for n, side in enumerate(["train"] * 6 + ["valid"] * 3 + ["test"] * 2)]
    parts = {side: [Path(name).name for name in names if name.startswith(side)] for side in ("train", "valid", "test")}

    def rows_of(side: str, head: str, row: Any) -> str:
        return "\n".join([head, *(row(place, name) for place, name in enumerate(parts[side]))])

    rows = {f"{side}/_classes.csv": rows_of(side, "filename,cat,dog", lambda k, f: f"{f},1,{k % 2}") for side in parts}
    roboflow = open_data(str(write(tmp_path / "c", rows, names)))
    assert (len(roboflow.train), len(roboflow.validation), len(roboflow.test or ())) == (6, 3, 2)
    known = ["1.0", "-1.0", ""]
    beside = {
        f"{side}.csv": rows_of(
            side,
            "Path,Age,Edema,Cardiomegaly",
            lambda k, f, side=side: f"Data-v1/{side}/{f},{50 + k},{known[k % 3]},{k % 2}.0",
        )
        for side in ("train", "valid")
    }
    chexpert = open_data(str(write(tmp_path / "d", beside, names)))
    assert (len(chexpert.train), len(chexpert.validation), chexpert.class_names) == (6, 3, ("Edema", "Cardiomegaly"))
    assert chexpert.train.labels[:3].tolist() == [[1, 0], [-1, 1], [-1, 0]]
    assert "columns that are no labels and not used: Age" in chexpert.notes
    assert any(
        note.startswith("6 labels (33.3 %) are blank or -1, which is read as not known") for note in chexpert.notes
    )
    assert "2 images have no row there and are not used (first: test/10.png)" in chexpert.notes


def test_images_on_both_sides_are_told(tmp_path: Path) -> None:
    """As of folders: a copy of a validation image among the training images."""
    names = [f"{side}/{n}.png" for side in ("train", "val") for n in range(4)]
    text = "filename,labels\n" + "\n".join(
        f"{name},{label}" for name, label in zip(names, ["a b", "a", "b", ""] * 2, strict=True)
    )
    root = write(tmp_path, {"labels.csv": text}, names)
    assert open_data(str(root)).leaks == ()
    (root / "val" / "1.png").write_bytes((root / "train" / "3.png").read_bytes())
    (leak,) = open_data(str(root)).leaks
    assert leak.startswith("1 of the 4 images that judge are among the training images as well (val/1.png)")


def test_what_does_not_fit_is_said_in_a_line(tmp_path: Path) -> None:
    some = "filename,labels\n" + "\n".join(f"{n}.png,{LABELS[n % 4]}" for n in range(5, 30))
    notes = open_data(str(write(tmp_path / "a", {"labels.csv": some}))).notes
    assert "10 rows name images that are not there (first: 20.png)" in notes
    assert "5 images have no row there and are not used (first: images/0.png)" in notes
    doubled = lists(" ") + "\n3.png,"
    notes = open_data(str(write(tmp_path / "b", {"labels.csv": doubled}))).notes
    assert "1 rows are of an image that stands there already: the labels are joined" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("filename,labels\nx.png,a b\ny.png,a b", "none of the 2 images that .* names is below"),
        ("hello\nworld", r"none of its columns \(hello\) is called 'labels'"),
        ("filename,x,y\n0.png,3.5,2\n1.png,2,1", r"none of its columns \(filename, x, y\) is called 'labels'"),
        ("filename,a,b\n0.png,1,1\n0.png,0,1\n1.png,1,0", "'0.png' stands there twice, with different labels"),
        ("filename,a,b\n0.png,1", "row 2 has 2 cells, the first 3"),
        ("filename,a,a\n0.png,1,1", "two columns are called 'a'"),
        ("filename,labels\n0.png,\n1.png,", "no image has a label"),
        ('filename,labels\n0.png,"a\n1.png,b', "unexpected end of data"),
        ("filename,caf\u00e9,cafe\u0301\n0.png,1,1", "two columns are called"),
        ("filename,a,b,split\n0.png,1,1,train\n1.png,0,0,val", "no validation image has any label"),
        ("filename,a,b,split\n0.png,1,1,train\n1.png,0,1,train", "too few to hold out some|leaves no image"),
    ],
)
def test_a_file_that_tells_no_labels_is_refused(text: str, message: str, tmp_path: Path) -> None:
    root = write(
        tmp_path, {"told.csv": text}, ["0.png", "1.png"] if "split" not in text or "val" in text else ["0.png"]
    )
    with pytest.raises(DataError, match=message):
        open_data(str(root), labels=root / "told.csv")


def test_missing_files_and_ambiguous_names_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"labels.json": '{"0.png": ["a", "b"]}'}, ["x/0.png", "y/0.png"])
    with pytest.raises(
        DataError, match=r"the labels name '0.png', which may be .*x/0.png and .*y/0.png; give more of its path"
    ):
        open_data(str(root), labels=root / "labels.json")
    with pytest.raises(DataError, match=r"the labels in .*nowhere.csv cannot be read"):
        open_data(str(root), labels=root / "nowhere.csv")


@pytest.mark.parametrize("value", [True, {"a": 1}, [[1]], [True, False], [0, 1, 0]])
def test_what_names_no_label_is_refused(value: object, tmp_path: Path) -> None:
    root = write(tmp_path, {"labels.json": json.dumps({"0.png": value, "1.png": ["a", "b"]})}, ["0.png", "1.png"])
    with pytest.raises(DataError, match=r"the labels of '0.png' are (not a list|numbers that come again)"):
        open_data(str(root), labels=root / "labels.json")


def test_a_label_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {"labels.csv": table("filename,labels", lambda n: f"{n}.png,caf{chr(233) if n % 2 else 'e' + chr(769)}|x")},
    )
    assert open_data(str(root)).class_names == ("caf\u00e9", "x")


def test_held_out_images_have_their_share_of_every_label(tmp_path: Path) -> None:
    """Also of a rare one; the split depends neither on the order of the images nor on others that are added to a group."""
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.int8)
    labels[:2, 3] = 1
    root = write(tmp_path, {}, [f"{n:03d}.png" for n in range(200)])
    paths = sorted(root.glob("*.png"))
    train, held = hold_out_labels(paths, labels, root, Split(0.2, 0), Contents())
    rows = [paths.index(path) for path in held]
    assert len(train) + len(held) == 200
    counts = labels.sum(axis=0)
    assert np.abs(labels[rows].sum(axis=0) - 0.2 * counts).max() <= 2
    assert (labels[rows].sum(axis=0) >= 1).all()
    assert (labels[rows].sum(axis=0) < counts).all()
    order = rng.permutation(200)
    again = hold_out_labels([paths[n] for n in order], labels[order], root, Split(0.2, 0), Contents())[1]
    assert set(again) == set(held)
    paths[5].write_bytes(paths[9].read_bytes())
    train, held = hold_out_labels(paths, labels, root, Split(0.2, 0), Contents())
    assert (paths[5] in held) == (paths[9] in held)
