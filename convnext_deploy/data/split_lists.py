"""Lists of which images are for training, for validation and for the test, as a file names them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from convnext_deploy.data.class_names import same_name
from convnext_deploy.data.decoding import printable
from convnext_deploy.data.name_files import NameFile
from convnext_deploy.data.split_words import ROLES
from convnext_deploy.errors import DataError

Item = TypeVar("Item")

_LARGEST_FILE = 1_000_000_000  # bytes


@dataclass(frozen=True)
class SplitLists:
    """Names of images. `train` None: all that the other lists do not name."""

    train: tuple[str, ...] | None
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()


def read_split_lists(path: Path) -> SplitLists:
    """Read a file of lists.

    Args:
        path: text with the name of a validation image per line, or JSON: a list of them, or lists under `train`, `val` (or
            `valid`, `validation`) and `test`, of which the second is needed.

    Raises: DataError: if it cannot be read, or names no validation images.
    """
    found = NameFile(
        lambda text: _roles(text.split("\n")),
        _roles,
        subject="the split",
        wrong="is not a split",
        expected='the names of validation images, one a line, or JSON: {"train": […], "val": […], "test": […]}',
        largest=_LARGEST_FILE,
    ).read(path)
    if not found.get("validation"):
        raise DataError(
            f"{printable(path)} names no validation images; expected their names, one a line or under 'val'."
        )
    return SplitLists(found.get("train"), found["validation"], found.get("test", ()))


def _roles(content: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, Mapping):
        content = {"val": content}
    found: dict[str, tuple[str, ...]] = {}
    for key, names in content.items():
        role = ROLES.get(str(key).lower())
        if role is None or role in found:
            raise ValueError(f"'{key}' is no split, or stands there twice")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"'{key}' is not a list of names")
        found[role] = tuple(name.strip() for name in names if name.strip())
    return found


def divide_by_lists(images: Mapping[Item, Sequence[str]], path: Path) -> dict[str, set[Item]]:
    """Return the images of each list, under `train`, `validation` and `test`; what no list names is in none of them.

    Args:
        images: image → the names by which it may be called, as `train/cat/1.jpg`, `cat/1.jpg` and `1.jpg`.
        path: of the lists, see `read_split_lists`.

    Raises: DataError: if a name is that of no image or of several, or an image is named twice.
    """
    lists = read_split_lists(path)
    by_name: dict[str, list[Item]] = {}
    for item, names in images.items():
        for name in dict.fromkeys(map(_plain, names)):
            by_name.setdefault(name, []).append(item)
    chosen: dict[Item, str] = {}
    for role, names in (("train", lists.train or ()), ("validation", lists.validation), ("test", lists.test)):
        for item, name in _look_up(names, by_name, path):
            if item in chosen:
                raise DataError(f"{printable(path)} names '{printable(name)}' twice; an image can be on one side only.")
            chosen[item] = role
    rest = "train" if lists.train is None else "none"
    divided: dict[str, set[Item]] = {"train": set(), "validation": set(), "test": set(), "none": set()}
    for item in images:
        divided[chosen.get(item, rest)].add(item)
    return divided


def _look_up(names: Iterable[str], by_name: Mapping[str, list[Item]], path: Path) -> Iterator[tuple[Item, str]]:
    for name in names:
        found = by_name.get(_plain(name), [])
        if len(found) != 1:
            count = f"{len(found)} images" if found else "no image"
            raise DataError(
                f"{printable(path)} names '{printable(name)}', which is {count} of the data; names are paths in the folder, such "
                "as train/cat/1.jpg, or cat/1.jpg."
            )
        yield found[0], name


def _plain(name: str) -> str:
    return same_name(name.replace("\\", "/")).removeprefix("./")
