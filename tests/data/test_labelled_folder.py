"""Images below a folder whose labels a file tells: what is said of their places, and which images count."""

from __future__ import annotations

from pathlib import Path

import pytest

from convnext_deploy.data.datasets import open_data
from tests.data.test_label_files import LABELS, table, write


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train", "test"), "12 images to train on from train/, 8 images to validate on from test/"),
        (("train", "valid"), "12 images to train on from train/, 8 images to validate on from valid/"),
        (
            ("more", "val", "val2", "dev", "test"),
            "4 images to train on from more/, 12 images to validate on from dev/ and val/, val2/, 4 images for the test, once at "
            "the end from test/",
        ),
        (("", "test"), "12 images to train on from data/, 8 images to validate on from test/"),
    ],
)
def test_the_folders_are_named_that_the_images_are_in(folders: tuple[str, ...], said: str, tmp_path: Path) -> None:
    places = folders if len(folders) > 2 else (folders[0], folders[1], folders[0], folders[1], folders[0])
    names = [str(Path(places[number // 4], f"{number}.png")) for number in range(20)]
    root = write(tmp_path / "data", {"labels.csv": table("path,labels", lambda n: f"{names[n]},{LABELS[n]}")}, names)
    assert f"{root}: {said}" in open_data(str(root)).notes


@pytest.mark.parametrize("broken", [False, True])
def test_rows_of_images_that_do_not_count_do_not_make_the_data_multi_label(broken: bool, tmp_path: Path) -> None:
    rows = table("filename,labels", lambda n: f"{n}.png,{('cat', 'dog')[n % 2]}") + "\nlost.png,cat dog"
    root = write(tmp_path, {"labels.csv": rows})
    if broken:
        (root / "images" / "lost.png").write_bytes(b"no image")
    data = open_data(str(root), skip_unreadable=broken)
    assert (data.multi_label, data.class_names) == (False, ("cat", "dog"))
    assert len(data.train) + len(data.validation) == 20
