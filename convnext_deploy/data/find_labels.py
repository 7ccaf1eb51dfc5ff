"""Find files of labels in a data folder, and those that belong together, one for each split."""

import re
from collections.abc import Iterator
from pathlib import Path

from convnext_deploy.data.decoding import printable
from convnext_deploy.data.image_folder import list_images
from convnext_deploy.data.split_words import ROLES, SPLIT_NAMES
from convnext_deploy.errors import DataError

_NAMES = (
    "labels",
    "_classes",
    "annotations",
    "_annotations.coco",
    "metadata",
    "train",
    "train_labels",
    "instances_train",
)
_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
_FOLDERS = ("annotations", "labels")  # in which such files lie
_TRAIN = re.compile(r"train", re.IGNORECASE)
LabelFile = tuple[Path, str | None]
"""A file, and the split whose images it names; None: of any."""


def find_label_files(root: Path) -> list[LabelFile]:
    """Return the files of labels of a folder without folders of classes; empty where there are none.

    That is `labels.csv` or another usual name in the folder, in `annotations/`, or in each folder of a split, as Roboflow has them.

    Raises: DataError: if a folder cannot be listed.
    """
    try:
        for folder in (root, *(root / name for name in _FOLDERS)):
            if folder.is_dir() and (found := _best(folder)) is not None:
                return [*with_siblings(found)]
        return [(found, role) for folder, role in _split_folders(root) if (found := _best(folder)) is not None]
    except OSError as error:
        raise _unlisted(error, root) from None


def has_class_folders(root: Path) -> bool:
    """Whether two folders or more that are no splits have images, in the folder or in its `train/`.

    Raises: DataError: if a folder cannot be listed.
    """
    base = root / "train" if (root / "train").is_dir() else root
    try:
        inside = [path for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")]
        classes = [path for path in inside if path.name.lower().rstrip("0123456789") not in SPLIT_NAMES]
        return sum(bool(list_images(path)) for path in classes) > 1
    except OSError as error:
        raise _unlisted(error, root) from None


def _unlisted(error: OSError, root: Path) -> DataError:
    return DataError(
        f"the data folder {printable(root)} cannot be read ({printable(error.filename or root)}: {error.strerror})."
    )


def with_siblings(path: Path) -> Iterator[LabelFile]:
    """Yield a file of labels, and if its name says that it is of training, those beside it that are of other splits."""
    others: list[LabelFile] = []
    if _TRAIN.search(path.stem):
        for word, role in ROLES.items():
            other = path.with_name(_TRAIN.sub(word, path.name, count=1))
            if role != "train" and other.is_file() and all(role != known for _, known in others):
                others.append((other, role))
    yield path, "train" if others else None
    yield from others


def _best(folder: Path) -> Path | None:
    """Return the file in a folder whose name is the most usual; None where there is none."""
    files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES}
    for name in _NAMES:
        for suffix in _SUFFIXES:
            pattern = re.compile(rf"{re.escape(name)}(20\d\d)?{re.escape(suffix)}")
            if (found := next((path for known, path in files.items() if pattern.fullmatch(known)), None)) is not None:
                return found
    return None


def _split_folders(root: Path) -> Iterator[tuple[Path, str]]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if (role := ROLES.get(folder.name.lower())) is not None:
            yield folder, role
