"""What files of labels say of splits: words that are not known are refused, so that no image that is to judge is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convnext_deploy.data.datasets import open_data
from convnext_deploy.errors import DataError
from tests.data.test_label_files import LABELS, table, write
from tests.data.test_sources import refusal


@pytest.mark.parametrize("word", ["eval", "valid_2", "holdout", ""])
@pytest.mark.parametrize("name", ["labels.csv", "labels.json", "metadata.jsonl"])
def test_an_unknown_word_for_a_split_is_refused(name: str, word: str, tmp_path: Path) -> None:
    """Its images joined those to train on, or the whole column was passed over."""
    words = ["train" if n % 4 else word for n in range(20)]
    records = [json.dumps({"file": f"{n}.png", "labels": LABELS[n].split(), "split": words[n]}) for n in range(20)]
    texts = {
        "labels.csv": table("filename,labels,split", lambda n: f"{n}.png,{LABELS[n]},{words[n]}"),
        "labels.json": f"[{', '.join(records)}]",
        "metadata.jsonl": "\n".join(records),
    }
    root = write(tmp_path, {name: texts[name]})
    called = f"'{word}'" if word else "blank"
    assert (
        f"the split of 5 images in {root / name} is {called} (first: 0.png), which is not known; expected train, "
        in refusal(root)
    )


def test_a_column_that_may_tell_other_things_counts_where_it_names_a_split(tmp_path: Path) -> None:
    hospitals = table("filename,labels,dataset", lambda n: f"{n}.png,{LABELS[n]},{['mayo', 'nih'][n % 2]}")
    data = open_data(str(write(tmp_path / "a", {"labels.csv": hospitals})))
    assert "columns that are no labels and not used: dataset" in data.notes
    mixed = table("filename,labels,dataset", lambda n: f"{n}.png,{LABELS[n]},{['mayo', 'test'][n % 2]}")
    assert "is 'mayo' (first: 0.png)" in refusal(write(tmp_path / "b", {"labels.csv": mixed}))
    sure = table("filename,labels,subset", lambda n: f"{n}.png,{LABELS[n]},{['a', 'b'][n % 2]}")
    assert "is 'a' (first: 0.png)" in refusal(write(tmp_path / "c", {"labels.csv": sure}))


@pytest.mark.parametrize("folder", ["eval", "Evaluation", "holdout2"])
def test_images_in_a_folder_of_a_split_that_is_not_read_are_refused(folder: str, tmp_path: Path) -> None:
    """As where folders of classes lie in it."""
    names = [f"{'train' if n % 4 else folder}/{n}.png" for n in range(20)]
    text = table("filename,labels", lambda n: f"{names[n]},{LABELS[n]}")
    assert f"Rename {folder}/ to val/" in refusal(write(tmp_path, {"labels.csv": text}, names))


@pytest.mark.parametrize(
    ("head", "flags", "counts"),
    [
        ("is_valid", lambda n: f"{n % 4 == 0}", (15, 5, 0)),
        ("is_train", lambda n: f"{n % 4 > 0:d}", (15, 5, 0)),
        ("Is Training", lambda n: f"{n % 4 > 0:d}.0", (15, 5, 0)),
        ("is_test", lambda n: f"{n % 4 == 0:d}", (15, 5, 0)),
        ("valid", lambda n: f"{n % 4 == 0:d}", (15, 5, 0)),
        ("train,val", lambda n: f"{n % 4 > 0:d},{n % 4 == 0:d}", (15, 5, 0)),
        ("is_valid,is_test", lambda n: f"{n % 4 == 0:d},{n % 4 == 1:d}", (10, 5, 5)),
        ("train,valid,test", lambda n: f"{n % 4 > 1:d},{n % 4 == 0:d},{n % 4 == 1:d}", (10, 5, 5)),
    ],
)
def test_columns_of_0_and_1_that_tell_a_split_are_no_labels(
    head: str, flags: object, counts: tuple[int, int, int], tmp_path: Path
) -> None:
    assert callable(flags)
    text = table(
        f"filename,cat,dog,{head}", lambda n: f"{n}.png,{'cat' in LABELS[n]:d},{'dog' in LABELS[n]:d},{flags(n)}"
    )
    data = open_data(str(write(tmp_path, {"labels.csv": text})))
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.validation), len(data.test or ())) == counts
    assert data.split is None
    assert "each column of 0 and 1 is a label: cat, dog" in data.notes


def test_flags_of_a_split_count_in_records_of_json_too(tmp_path: Path) -> None:
    records = [{"file": f"{n}.png", "labels": LABELS[n].split(), "is_train": n % 4 > 0} for n in range(20)]
    data = open_data(str(write(tmp_path, {"labels.json": json.dumps(records)})))
    assert (len(data.train), len(data.validation), data.split) == (15, 5, None)


@pytest.mark.parametrize(
    ("head", "flags", "message"),
    [
        ("is_train,is_test", lambda n: "1,1", "several of is_train and is_test are set for image 1"),
        ("train,val,test", lambda n: f"{n > 2:d},0,0", "none of train and val and test is set for image 1"),
        ("is_valid", lambda n: "maybe", "image 1 has 'maybe' under is_valid"),
        ("is_eval", lambda n: f"{n % 2}", "is 'eval' (first: 1.png), which is not known"),
        ("split", lambda n: f"{n % 2}", "is '0' (first: 0.png), which is not known"),
    ],
)
def test_flags_that_contradict_or_are_not_known_are_refused(
    head: str, flags: object, message: str, tmp_path: Path
) -> None:
    assert callable(flags)
    text = table(f"filename,cat,dog,{head}", lambda n: f"{n}.png,{n % 2},{n % 3 > 0:d},{flags(n)}")
    assert message in refusal(write(tmp_path, {"labels.csv": text}))


def test_a_fold_is_no_label_and_a_train_is_one(tmp_path: Path) -> None:
    """Of Pascal's classes one is called train; and a single question may be whether something is valid."""
    text = table("filename,cat,train,fold", lambda n: f"{n}.png,{n % 2},{n % 3 > 0:d},{n % 2}")
    data = open_data(str(write(tmp_path / "a", {"labels.csv": text})))
    assert data.class_names == ("cat", "train")
    assert "columns that are no labels and not used: fold" in data.notes
    question = table("filename,valid", lambda n: f"{n}.png,{n % 2}")
    assert open_data(str(write(tmp_path / "b", {"labels.csv": question}))).class_names == ("not valid", "valid")


def test_lists_of_a_split_know_the_same_words(tmp_path: Path) -> None:
    text = table("filename,labels", lambda n: f"{n}.png,{LABELS[n]}")
    root = write(tmp_path / "data", {"labels.csv": text})
    lists = tmp_path / "split.json"
    lists.write_text(json.dumps({"dev": [f"{n}.png" for n in range(5)]}))
    assert len(open_data(str(root), split_file=lists).validation) == 5
    lists.write_text(json.dumps({"eval": [f"{n}.png" for n in range(5)]}))
    with pytest.raises(DataError, match="'eval' is no split"):
        open_data(str(root), split_file=lists)
