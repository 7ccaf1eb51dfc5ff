"""Names of classes: orders of other libraries, files that tell them, and how they are matched."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from timm.utils.misc import natural_key as timm_key

from convnext_deploy.data.class_names import (
    NATURAL,
    SORTED,
    in_order,
    match_names,
    missing_names,
    read_class_names,
    undecided,
)
from convnext_deploy.errors import DataError

NAMES = st.lists(st.text(st.sampled_from("aBb019 _-éÄ٣x"), min_size=1, max_size=5), min_size=2, max_size=8, unique=True)


@given(NAMES)
def test_natural_order_is_timms(names: list[str]) -> None:
    found = in_order(names, NATURAL)
    assert [timm_key(name) for name in found] == sorted(map(timm_key, names))
    assert (undecided(names) is None) == (len({str(timm_key(name)) for name in names}) == len(names))


def test_sorted_order_is_torchvisions(tmp_path: Path) -> None:
    names = ("10", "2", "b", "B", "é", "Z", "a 1", "n02")
    for name in names:
        (tmp_path / name).mkdir()
    assert list(in_order(names, SORTED)) == torchvision.datasets.folder.find_classes(tmp_path)[0]


def test_names_are_matched_in_every_unicode_form() -> None:
    composed, apart = unicodedata.normalize("NFC", "été"), unicodedata.normalize("NFD", "été")
    assert match_names(("a", composed, "c"), ("c", apart, "a")) == (2, 1, 0)
    assert match_names(("crane", "crane"), ("crane", "crane")) == (0, 1)  # as they stand
    assert match_names(("crane", "a", "crane"), ("a", "crane", "crane")) is None
    assert match_names(("a", "b"), ("a", "c")) is None
    assert missing_names(("a", composed, "x"), (apart, "a", "y", "y")) == (["x"], ["y", "y"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "\ufeffdog\r\ncat\n\n"),
        ("names.json", '["dog", "cat"]'),
        ("names.json", '{"1": "cat", "0": "dog"}'),
        ("class_to_idx.json", '{"cat": 1, "dog": 0}'),
        ("config.json", json.dumps({"model_type": "convnext", "id2label": {"0": "dog", "1": "cat"}})),
        ("config.json", json.dumps({"architecture": "convnext_tiny", "label_names": ["dog", "cat"]})),
    ],
)
def test_files_of_names(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_class_names(tmp_path / name) == ("dog", "cat")


def test_the_file_that_comes_with_imagenet(tmp_path: Path) -> None:
    path = tmp_path / "LOC_synset_mapping.txt"
    path.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    assert read_class_names(path) == ("n01440764", "n01443537")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"cat": 0, "dog": 2}', "the numbers are not 0, 1, … without a gap"),
        ('{"0": 3.5}', "expected a list of names"),
        ("[1, 2]", "no list of names"),
        ("{", "does not name classes"),
        ('["cat", ""]', "line 2 of"),
    ],
)
def test_other_files_are_refused_in_one_line(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        read_class_names(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
