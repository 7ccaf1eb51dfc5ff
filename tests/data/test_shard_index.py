"""The index of tar shards: what is refused and with which words, what is left out, what is kept between runs."""

from __future__ import annotations

import io
import itertools
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.data.datasets import open_data
from convnext_deploy.errors import DataError
from tests.shards import numbered, png, sample, write_tar

BLOCK = tarfile.BLOCKSIZE


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of three shards with ten samples each."""
    root = tmp_path / "shards"
    for index, name in enumerate(("train-0", "train-1", "val-0")):
        numbered(root / f"{name}.tar", range(10 * index, 10 * index + 10))
    return root


def refusal(root: Path, *, skip_unreadable: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(root), skip_unreadable=skip_unreadable)
    assert str(caught.value).isprintable()
    return str(caught.value)


def _compress(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10_500])


def _join(path: Path) -> None:
    path.write_bytes(path.read_bytes() + (path.parent / "train-0.tar").read_bytes())


def _zip(path: Path) -> None:
    path.write_bytes(b"PK\3\4".ljust(2000, b"\0"))


def _twice(path: Path) -> None:
    write_tar(path, [*sample(1, 0), *sample(2, 1), *sample(1, 1)])


def _same_file_twice(path: Path) -> None:
    write_tar(path, [("7.png", png(0)), ("7.png", png(1)), ("7.cls", b"0")])


def _backwards(path: Path) -> None:
    back = tarfile.TarInfo("README")
    back.size = -BLOCK  # leads to this header again
    content = path.read_bytes()
    path.write_bytes(content[: 2 * BLOCK] + back.tobuf(tarfile.GNU_FORMAT) + content[2 * BLOCK :])


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bytes": (
        lambda path: path.write_bytes(b""),
        "cannot be read as a tar file (empty file); copy or make it again.",
    ),
    "no files": (lambda path: write_tar(path, []), "has no samples; remove it, or make it again."),
    "no keys": (lambda path: write_tar(path, [("README", b"x"), ("._0.png", b"x")]), "has no samples; remove it"),
    "zip file": (_zip, "cannot be read as a tar file ("),
    "compressed": (_compress, "is compressed, so that no sample can be read alone; unpack it to a plain .tar file."),
    "cut": (_cut, "cannot be read as a tar file (unexpected end of data); copy or make it again."),
    "joined": (_join, "goes on after the end of an archive, as when several are joined; join their files instead."),
    "key twice": (_twice, "has the key '001' twice; the files of a sample must follow each other."),
    "file twice": (_same_file_twice, "cannot be read as a tar file (7.png: duplicate file name in tar file png"),
    "backwards": (_backwards, "is not a sound tar file: its headers lead backwards; copy or make it again."),
    "pipe": (_pipe, "is not a regular file; expected a tar file."),
    "dangling link": (_dangling_link, "cannot be read (No such file or directory)."),
}


@pytest.mark.parametrize(("damage", "reason"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["train-1.tar", "val-0.tar"])
def test_broken_shards_are_refused(shards: Path, name: str, damage: Callable[[Path], object], reason: str) -> None:
    damage(shards / name)
    assert refusal(shards).startswith(f"{shards / name} {reason}")
    assert refusal(shards, skip_unreadable=True).startswith(f"{shards / name} {reason}")


def test_a_shard_cut_anywhere_is_refused(shards: Path) -> None:
    path = shards / "train-1.tar"
    content = path.read_bytes()
    end = len(content.rstrip(b"\0"))
    end += -end % BLOCK
    for size in itertools.chain(range(0, end + BLOCK, BLOCK), range(100, end + BLOCK, 777)):
        path.write_bytes(content[:size])
        assert refusal(shards).startswith(f"{path} ")
    for size in (end + BLOCK, end + 2 * BLOCK, len(content), len(content) + 3 * BLOCK):
        path.write_bytes(content[:size].ljust(size, b"\0"))
        assert len(open_data(str(shards)).train) == 20


def test_damage_of_any_kind_ends_in_one_line(shards: Path) -> None:
    path = shards / "train-1.tar"
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = []
    for _ in range(300):
        damaged = bytearray(content)
        for position in rng.integers(0, 20 * BLOCK, 3):
            damaged[position - position % BLOCK + position % 160] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            open_data(str(shards), skip_unreadable=True)
        except DataError as error:
            refused.append(str(error))
    assert all(map(str.isprintable, refused))
    assert len(refused) > 100


UNUSABLE: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "no image": ([("x/9.cls", b"1"), ("x/9.txt", b"1")], "has no image (only .cls, .txt)"),
    "no label": ([("x/9.png", png(9)), ("x/9.txt", b"1")], "has no label: neither a .cls nor a .json file"),
    "two images": ([("x/9.jpg", png(9)), ("x/9.png", png(9)), ("x/9.cls", b"1")], "has 2 images (.jpg, .png)"),
    "longer suffix": ([("x/9.mask.png", png(9)), ("x/9.cls", b"1")], "has no image (only .mask.png, .cls)"),
    "label is a name": ([("x/9.png", png(9)), ("x/9.cls", b"cat\n")], "has no class index in its .cls file, but b'cat"),
    "negative": ([("x/9.png", png(9)), ("x/9.cls", b"-1")], "has no class index in its .cls file, but b'-1'"),
    "endless": ([("x/9.png", png(9)), ("x/9.cls", b"1" * 10**6)], "has no class index in its .cls file, but b'1111"),
    "blank": ([("x/9.png", png(9)), ("x/9.cls", b"1" + b" " * 70 + b"2")], "has no class index in its .cls file, but"),
    "json of a name": ([("x/9.png", png(9)), ("x/9.json", b'{"label": "a"}')], "has no class index as 'label' in its"),
    "json of 10**30": ([("x/9.png", png(9)), ("x/9.json", b'{"label": 1%s}' % (b"0" * 30))], "has no class index as"),
    "json of truth": ([("x/9.png", png(9)), ("x/9.json", b'{"label": true}')], "has no class index as 'label' in its"),
    "json without": (
        [("x/9.png", png(9)), ("x/9.json", b'{"labels": 1}')],
        "has no label: no .cls file, and no 'label'",
    ),
    "json of a list": ([("x/9.png", png(9)), ("x/9.json", b"[1]")], "has no label: no .cls file, and no 'label' in"),
    "no json": ([("x/9.png", png(9)), ("x/9.json", b"\xff{")], "has no label: no .cls file, and no 'label' in its"),
    "deep json": ([("x/9.png", png(9)), ("x/9.json", b"[" * 10**5)], "has no label: no .cls file, and no 'label' in"),
    "text": ([("x/9.png", b"text"), ("x/9.cls", b"1")], "cannot be read as an image (not an image)"),
    "empty": ([("x/9.png", b""), ("x/9.cls", b"1")], "cannot be read as an image (an empty file)"),
    "cut": ([("x/9.png", png(9)[:50]), ("x/9.cls", b"1")], "cannot be read as an image ("),
}


@pytest.mark.parametrize(("files", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_samples_are_refused_or_left_out(shards: Path, files: list[tuple[str, bytes]], reason: str) -> None:
    path = shards / "train-1.tar"
    write_tar(path, [*sample(1, 0), *files, *sample(2, 1)])
    message = refusal(shards)
    assert message.startswith(f"{path}/x/9 {reason}")
    assert message.endswith("; repair or remove it, or leave it out with --skip-unreadable.")
    data = open_data(str(shards), skip_unreadable=True)
    assert data.unreadable == (path / "x/9",)
    assert data.notes == ("1 image that cannot be read was left out:", f"  {path}/x/9")
    assert data.train.labels.tolist() == [0, 1] * 6


def test_the_first_unusable_sample_is_named_and_the_others_are_counted(shards: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_tar(shards / name, [*sample(1, 0), ("a\nb.png", png(2)), *sample(2, 1)])
    assert r"train-0.tar/a\nb has no label: neither a .cls nor a .json file, and 2 others cannot be" in refusal(shards)
    assert len(open_data(str(shards), skip_unreadable=True).unreadable) == 3


def test_links_and_sparse_files_are_no_images(shards: Path) -> None:
    path = shards / "train-1.tar"
    write_tar(path, [*sample(1, 0), *sample(2, 1)])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("002.jpg")  # of the sample before
        link.type, link.linkname = tarfile.SYMTYPE, "002.png"
        tar.addfile(link)
        hole = tarfile.TarInfo("003.ppm")  # what is left out of a sparse file would be read from the files after it
        hole.size = BLOCK
        hole.pax_headers = {"GNU.sparse.map": f"0,{BLOCK}", "GNU.sparse.size": str(3 * 400 + 13)}
        tar.addfile(hole, io.BytesIO(b"P6 20 20 255\n".ljust(BLOCK, b"x")))
        label = tarfile.TarInfo("003.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"1"))
    data = open_data(str(shards), skip_unreadable=True)
    assert data.unreadable == (path / "003",)
    assert data.train.labels.tolist() == [0, 1] * 6


def test_a_class_without_validation_images_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [*sample(0, 0), *sample(1, 1), *sample(2, 2)])
    write_tar(tmp_path / "val-0.tar", [*sample(0, 0), *sample(2, 2)])
    assert refusal(tmp_path).startswith(f"class '1' has no images in the validation shards of {tmp_path}, where labels")


@pytest.mark.parametrize(
    ("labels", "names", "reason"),
    [
        ((0, 1, 2), "a\nb", "train-0.tar/002.png has the label 2, counted from 0, but {root} names only 2 classes."),
        ((0, 1, 1), "a\nb\nc", "class 'c' has no images in the train shards of {root}, where labels run to 1; every"),
        ((0, 2, 3), None, "class '1' has no images in the train shards of {root}, where labels run to 3; every class"),
        (
            (0, 1, 999999999),
            None,
            "class '2' has no images in the train shards of {root}, where labels run to 999999999",
        ),
        ((0, 0, 0), None, "the shards of {root} have only one class; at least 2 are needed."),
        ((0, 0, 0), "a", "the shards of {root} have only one class; at least 2 are needed."),
        (
            (0, 1, 1),
            "a\n\nb",
            "line 2 of {root}/classes.txt is not a class name; expected one per line, in plain text.",
        ),
        (
            (0, 1, 1),
            "a\nb\tc",
            "line 2 of {root}/classes.txt is not a class name; expected one per line, in plain text.",
        ),
        ((0, 1, 1), "", "line 1 of {root}/classes.txt is not a class name"),
        ((0, 1, 1), b"\xff", "the class names in {root}/classes.txt cannot be read (it is not UTF-8 text (byte 1))."),
    ],
)
@pytest.mark.parametrize("validation", [True, False])
def test_labels_without_names_or_images_are_refused(
    tmp_path: Path, labels: tuple[int, ...], names: str | bytes | None, reason: str, validation: bool
) -> None:
    files = [file for number, label in enumerate(labels) for file in sample(number, label)]
    write_tar(tmp_path / "train-0.tar", files)
    if validation:
        write_tar(tmp_path / "val-0.tar", files)
    if names is not None:
        (tmp_path / "classes.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
    assert reason.format(root=tmp_path) in refusal(tmp_path)


def test_shards_need_webdataset(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)
    message = refusal(shards)
    assert message.startswith(f"{shards}/train-0.tar is a shard, and webdataset cannot be loaded (")
    assert message.endswith("; pip install 'convnext_deploy[webdataset]'.")
