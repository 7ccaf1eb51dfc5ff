"""Which output of a network is which class: names are matched, files of names read, and the orders of other libraries known.

Sources: timm 1.0.31, `timm.utils.misc.natural_key` and `timm.data.readers.reader_image_folder`; torchvision 0.29,
`torchvision.datasets.folder.find_classes`.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convnext_deploy.data.decoding import printable
from convnext_deploy.data.name_files import NameFile
from convnext_deploy.documents import is_plain_line
from convnext_deploy.errors import DataError

CLASS_FILES = ("classes.txt", "classnames.txt", "class_names.txt")
NATURAL, SORTED = "natural", "sorted"
ORDER_WORDS = {NATURAL: "timm's natural order, numbers by value", SORTED: "the order of their characters"}
_LARGEST_FILE = 50_000_000  # bytes, as of the config files of other libraries
_WORDNET = re.compile(r"n\d{8}")
_SYNSET_LINE = re.compile(r"(n\d{8})[ \t]+\S.*")  # of ImageNet's LOC_synset_mapping.txt


def natural_key(name: str) -> list[int | str]:
    """Return what timm sorts the folders of classes by: digits as numbers, letters without regard to case."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]


def in_order(names: Iterable[str], order: str) -> tuple[str, ...]:
    """Return names as a library numbers them: `natural` as timm, `sorted` as torchvision and transformers."""
    by_characters = sorted(names)
    return tuple(sorted(by_characters, key=natural_key) if order == NATURAL else by_characters)


def undecided(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two names that timm's order does not tell apart, such as `01` and `1`: there it is chance which comes first."""
    ordered = in_order(names, NATURAL)
    pairs = itertools.pairwise(ordered)
    return next((pair for pair in pairs if natural_key(pair[0]) == natural_key(pair[1])), None)


def same_name(name: str) -> str:
    """Return a name in Unicode's composed form: macOS writes `é` as two characters where others write one."""
    return unicodedata.normalize("NFC", name)


def match_names(own: Sequence[str], others: Sequence[str]) -> tuple[int, ...] | None:
    """Return for each of `others` its place in `own`; None where these are not the same names, or one of them stands twice."""
    left, right = [same_name(name) for name in own], [same_name(name) for name in others]
    if left == right:
        return tuple(range(len(left)))
    place = {name: index for index, name in enumerate(left)}
    if len(place) < len(left) or sorted(left) != sorted(right):
        return None
    return tuple(place[name] for name in right)


def are_wordnet_ids(names: Sequence[str]) -> bool:
    """Whether all names are those of ImageNet's folders, such as `n01440764`."""
    return all(_WORDNET.fullmatch(name) for name in names)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are whole numbers, such as `0`, `1`, …, which tell their order by themselves."""
    return all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the names of classes in the order of their numbers.

    Args:
        path: text with a name per line, or with a WordNet id and a name, as ImageNet's `LOC_synset_mapping.txt`; or JSON: a list of
            names, a mapping between numbers and names in either direction, or a config of transformers or timm.

    Raises: DataError: if it cannot be read, or is none of these.
    """
    found = NameFile(
        lambda text: text.rstrip().split("\n"),
        parse_names,
        subject="the class names",
        wrong="does not name classes",
        expected="a list of names, or a mapping between the numbers 0, 1, … and names",
        largest=_LARGEST_FILE,
    ).read(path)
    names = tuple(name.strip() for name in found)
    for number, name in enumerate(names, 1):
        if not is_plain_line(name):
            raise DataError(
                f"line {number} of {printable(path)} is not a class name; expected one per line, in plain text."
            )
    synsets = [_SYNSET_LINE.fullmatch(name) for name in names]
    return tuple(found[1] for found in synsets if found) if all(synsets) else names


def parse_names(content: Any) -> list[str]:
    """Return the names in a value from JSON. Raises: ValueError, TypeError: if there are none."""
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("id2label", "label_names") if content.get(key)), content)
    if isinstance(content, Mapping):
        pairs = content.items()
        numbered = all(isinstance(value, int) for value in content.values())
        by_number = {int(value if numbered else key): key if numbered else value for key, value in pairs}
        if sorted(by_number) != list(range(len(content))):
            raise ValueError("the numbers are not 0, 1, … without a gap")
        content = [by_number[number] for number in range(len(content))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError("no list of names")
    return content


def missing_names(names: Sequence[str], others: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names that only the first, and those that only the second has, each in its order."""
    left, right = Counter(map(same_name, names)), Counter(map(same_name, others))
    return [n for n in names if left[same_name(n)] > right[same_name(n)]], [
        n for n in others if right[same_name(n)] > left[same_name(n)]
    ]


def describe_mismatch(names: Sequence[str], where: str, others: Sequence[str], whose: str) -> str:
    """Say in what names differ that should be the same, and what to do; `where` and `whose` say whose they are."""
    first, second = missing_names(names, others)
    return (
        f"{where} has {len(names)} classes and {whose} {len(others)}"
        + (f"; '{first[0]}' is not in {whose}" if first else "")
        + (f"; '{second[0]}' is not in {where}" if second else "")
        + ("" if first or second else "; a name stands there twice")
        + ". Name each class once, as its folder is called."
    )
