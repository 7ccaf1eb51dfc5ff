"""Images whose labels are told by a file: found below the data folder, and divided."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.class_names import same_name
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.decoding import printable
from convnext_deploy.data.find_labels import LabelFile
from convnext_deploy.data.label_files import read_labels
from convnext_deploy.data.label_table import ROLES, LabelTable, join_tables, some
from convnext_deploy.data.multi_label_split import hold_out_labels
from convnext_deploy.data.split_lists import divide_by_lists
from convnext_deploy.data.splits import ClassFiles, Split, split_validation
from convnext_deploy.data.unreadable import Skipping, take_out_unreadable
from convnext_deploy.errors import DataError
from convnext_deploy.metrics.multi_label import UNKNOWN

_SIDES = ("train", "validation", "test")


@dataclass(frozen=True)
class Labelled:
    """Some images with their labels, `(N, K)`: 1, 0 or `UNKNOWN`; one class an image: `(N,)`, their indices."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class LabelledContents:
    """What a folder has of which a file tells the labels; the fields that `FolderContents` has too say the same.

    `files`: the files that told it. `notes`: how they were read, and what they do not fit, a line each.
    """

    train: Labelled
    validation: Labelled
    test: Labelled
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    held_out: bool
    places: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_out: int = 0
    unreadable: tuple[Path, ...] = ()
    reasons: tuple[str, ...] = ()


def read_labelled_folder(
    root: Path,
    images: Sequence[Path],
    files: Sequence[LabelFile],
    split: Split,
    skipping: Skipping | None,
    contents: Contents,
) -> LabelledContents:
    """Give the images below a folder their labels, and divide them.

    Where files tell the split of their rows, that counts; then the folders `train/`, `val/` and the like; then some are held out.
    Where every image has exactly one label, this is data of one class an image, as that of folders.

    Args:
        root: the data folder.
        images: files below it.
        files: of labels, each with the split of its images.
        split: how validation images are chosen where nothing tells them.
        skipping: leave out images that cannot be read; None: they are an error.
        contents: of the files.

    Raises: DataError: if a file cannot be read or names no image, an image cannot be read, or a side or class has no image.
    """
    if not images:
        raise DataError(
            f"{printable(root)} has no images; expected those that {printable(files[0][0])} names below it."
        )
    tables = [_with_role(read_labels(path), role) for path, role in files]
    rows, absent = _match(root, images, files, tables)
    table = join_tables(tables)
    where = " and ".join(printable(path) for path, _ in files)
    notes = [f"labels of {len(rows):,} images from {where}", *table.notes]
    readable: ClassFiles = {"any label": sorted(rows)}
    left_out_images = take_out_unreadable({root: readable}, skipping, contents)
    # what is said of images that are not there, or are left out, does not tell of which kind the data are
    table = table.take([rows[path] for path in readable["any label"]])
    known = {path: row for row, path in enumerate(readable["any label"])}
    unnamed = sorted(set(images) - rows.keys())
    if absent:
        notes.append(f"{len(absent):,} rows name images that are not there (first: {printable(absent[0])})")
    if unnamed:
        first = printable(unnamed[0].relative_to(root))
        notes.append(f"{len(unnamed):,} images have no row there and are not used (first: {first})")
    unknown = int((table.labels == UNKNOWN).sum())
    if unknown:
        share = unknown / table.labels.size
        notes.append(
            f"{unknown:,} labels ({100 * share:.1f} %) are blank or -1, which is read as not known: they count neither in the loss "
            "nor in the score"
        )
    sides, held_out, places, left_out = _divide(root, known, table, split, contents)
    parts = {side: _collect(sides.get(side, []), known, table) for side in _SIDES}
    _check_sides(parts, table, where)
    return LabelledContents(
        parts["train"],
        parts["validation"],
        parts["test"],
        table.classes,
        tuple(path for path, _ in files),
        tuple(notes),
        held_out,
        places,
        left_out=left_out,
        **left_out_images,
    )


def _with_role(table: LabelTable, role: str | None) -> LabelTable:
    return table if role is None or any(table.roles) else replace(table, roles=(role,) * len(table.names))


def _match(
    root: Path, images: Sequence[Path], files: Sequence[LabelFile], tables: Sequence[LabelTable]
) -> tuple[dict[Path, int], list[str]]:
    """Return the row of each image in the joined table, and the names of images that are not there.

    Raises: DataError: if a name is that of several images, or none is there.
    """
    index = _Names(root, images)
    rows: dict[Path, int] = {}
    absent: list[str] = []
    several: list[str] = []
    start = 0
    for (file, _), table in zip(files, tables, strict=True):
        folder = file.parent.relative_to(root) if file.is_relative_to(root) else Path()
        for number, name in enumerate(table.names):
            found = index.find(name, folder)
            if found is None:
                absent.append(name)
            elif rows.setdefault(found, start + number) != start + number:
                several.append(name)
        start += len(table.names)
    if several:
        raise DataError(
            f"{len(several):,} images have two rows in {' and '.join(printable(file) for file, _ in files)} "
            f"(first: {printable(several[0])}); name each once."
        )
    if not rows:
        raise DataError(
            f"none of the {len(absent):,} images that {printable(files[0][0])} names is below {printable(root)} "
            f"(first: {printable(absent[0])}); names are paths from there, or ends of such paths."
        )
    return rows, absent


class _Names:
    """By which names images may be called: their paths below the folder or ends of these, with or without the suffix."""

    def __init__(self, root: Path, images: Iterable[Path]) -> None:
        self._places: dict[str, list[Path]] = {}
        for path in images:
            whole = same_name(path.relative_to(root).as_posix())
            for name in (whole, whole[: -len(path.suffix)] if path.suffix else whole):
                parts = name.split("/")
                for start in range(len(parts)):
                    self._places.setdefault("/".join(parts[start:]), []).append(path)

    def find(self, name: str, folder: Path) -> Path | None:
        """Return the image of a name, which may begin with folders above the data; None: it is not there.

        Raises: DataError: if there are several.
        """
        plain = same_name(name.replace("\\", "/")).removeprefix("./").strip("/")
        parts = plain.split("/")
        near = [] if folder == Path() else [f"{folder.as_posix()}/{plain}"]
        for candidate in (*near, *("/".join(parts[start:]) for start in range(len(parts)))):
            found = self._places.get(candidate, [])
            if len(found) > 1:
                shown = " and ".join(printable(path) for path in found[:2])
                raise DataError(f"the labels name '{printable(name)}', which may be {shown}; give more of its path.")
            if found:
                return found[0]
        return None


def _divide(
    root: Path, rows: Mapping[Path, int], table: LabelTable, split: Split, contents: Contents
) -> tuple[dict[str, list[Path]], bool, tuple[str, ...], int]:
    """Return the images of each side, whether some were held out, where each side comes from, and how many are on none."""
    paths = sorted(rows)
    if split.file is not None:
        names = {path: (path.relative_to(root).as_posix(), path.name) for path in paths}
        divided = divide_by_lists(names, split.file)
        return {side: sorted(divided[side]) for side in _SIDES}, False, (), len(divided["none"])
    roles = {path: table.roles[row] or _role_of(path.relative_to(root)) for path, row in rows.items()}
    sides = {side: [path for path in paths if roles[path] == side] for side in _SIDES}
    others = [path for path in paths if roles[path] is None]
    if not sides["validation"] and sides["test"]:
        sides["validation"], sides["test"] = sides["test"], []
    if sides["validation"]:
        sides["train"] += others
        told = {path for path in paths if table.roles[rows[path]] is not None}
        return sides, False, tuple(_places(root, sides[side], told) for side in _SIDES if sides[side]), 0
    train = sorted(sides["train"] + others)
    if table.one_each:
        classes = {
            name: [path for path in train if table.labels[rows[path], k]] for k, name in enumerate(table.classes)
        }
        present = {name: files for name, files in classes.items() if files}
        parts = split_validation(present, root, split, contents)
        sides |= dict(
            zip(_SIDES, (sorted(path for files in part.values() for path in files) for part in parts), strict=False)
        )
        return sides, True, (), 0
    labels = table.labels[[rows[path] for path in train]]
    sides["train"], sides["validation"] = hold_out_labels(train, labels, root, split, contents)
    return sides, True, (), 0


def _places(root: Path, paths: Sequence[Path], told: Container[Path]) -> str:
    """Say where the images of a side are known from: the file of labels, those that are `told`, or the folders they lie in."""
    folders = {path: f"{path.relative_to(root).parts[0] if path.parent != root else root.name}/" for path in paths}
    found = ("the file of labels" if path in told else folder for path, folder in folders.items())
    (first, *more) = dict.fromkeys(found)
    return f"{first} and {some(more)}" if more else first


def _role_of(path: Path) -> str | None:
    first = path.parts[0].lower() if len(path.parts) > 1 else ""
    return ROLES.get(first.rstrip("0123456789"))


def _collect(paths: Sequence[Path], rows: Mapping[Path, int], table: LabelTable) -> Labelled:
    labels = table.labels[[rows[path] for path in paths]].astype(np.int64).reshape(len(paths), len(table.classes))
    return Labelled(tuple(paths), labels.argmax(axis=1) if table.one_each and len(paths) else labels)


def _check_sides(parts: Mapping[str, Labelled], table: LabelTable, where: str) -> None:
    """Raises: DataError: if there is nothing to train or to judge on, or of one class an image a class has none on a side."""
    if len(table.classes) < 2:
        raise DataError(f"{where} has only the label '{table.classes[0]}'; at least 2 are needed.")
    for name in table.classes:
        if not name.isprintable():
            raise DataError(f"the label {printable(name)} in {where} is not plain text; rename it.")
    for side, part in parts.items():
        if not part.paths and side == "test":
            continue
        if not part.paths:
            raise DataError(f"{where} leaves no image {'to train on' if side == 'train' else 'to validate on'}.")
        if not table.one_each:
            if not (part.labels == 1).any():
                raise DataError(f"no {side} image has any label in {where}; at least one is needed to judge by.")
            continue
        counts = Counter(part.labels.tolist())
        missing = next((name for k, name in enumerate(table.classes) if not counts[k]), None)
        if side == "test":  # it may lack classes
            continue
        if missing is not None:
            raise DataError(
                f"class '{missing}' has no {side} images in {where}; every class needs images in both splits."
            )
