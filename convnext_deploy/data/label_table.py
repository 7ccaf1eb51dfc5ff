"""Which labels images have, as a table, whatever kind of file told it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.class_names import same_name

ROLES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
"""What a split is called → which it is."""
FILE_COLUMNS = (
    "filename", "file_name", "file", "filepath", "file_path", "path", "fname", "image", "image_name", "image_path", "image_file",
    "image_id", "imageid", "image_index", "img", "img_name", "img_path", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "labels", "label", "classes", "class", "class_name", "class_names", "categories", "category", "tags", "tag", "targets",
    "target", "finding_labels", "finding_label", "findings", "labelname", "label_name",
)  # fmt: skip
ROLE_COLUMNS = ("split", "subset", "set", "partition", "fold", "dataset")
"""Names of columns that tell what images are called, their labels and their split; see `plain`."""
_NOTHING = {"no finding", "no_finding", "none", "nothing"}  # labels that say that there is none


@dataclass(frozen=True)
class LabelTable:
    """Rows: what images are called, and which labels they have, `(N, K)`: 1, 0, or `UNKNOWN` where that is not told.

    `roles`: `train`, `validation` or `test` for each row, None where the file does not say. `notes`: how it was read. `listed`:
    the labels of an image are a list, so that those of several rows can be joined; otherwise each row answers for every label.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int8]
    classes: tuple[str, ...]
    roles: tuple[str | None, ...]
    notes: tuple[str, ...] = ()
    listed: bool = True

    @property
    def one_each(self) -> bool:
        """Whether each image has exactly one label, and nothing is unknown: the usual data, of one class an image."""
        return bool(len(self.names)) and bool((self.labels >= 0).all() and (self.labels.sum(axis=1) == 1).all())

    def take(self, rows: Sequence[int]) -> "LabelTable":
        """Return the table of some of the rows, in their order."""
        names, roles = tuple(self.names[row] for row in rows), tuple(self.roles[row] for row in rows)
        return replace(self, names=names, labels=self.labels[list(rows)], roles=roles)


def label_lists(names: Sequence[str], lists: Sequence[Sequence[str]]) -> LabelTable:
    """Return the table of images and lists of their labels; one such as 'No Finding', if always alone, says that there is none."""
    lists = [[same_name(label) for label in labels] for labels in lists]
    classes = sorted({label for labels in lists for label in labels})
    says_none = [name for name in classes if name.lower() in _NOTHING]
    alone = all(len(labels) == 1 for labels in lists if set(labels) & {*says_none})
    if says_none and alone and any(len(labels) > 1 for labels in lists):
        classes = [name for name in classes if name not in says_none]
    else:
        says_none = []
    places = {name: place for place, name in enumerate(classes)}
    found = np.zeros((len(names), len(classes)), np.int8)
    for row, labels in enumerate(lists):
        found[row, [places[label] for label in labels if label in places]] = 1
    notes = tuple(f"'{name}' is read as no label" for name in says_none)
    return LabelTable(tuple(names), found, tuple(classes), (None,) * len(names), notes)


def join_tables(tables: Sequence[LabelTable]) -> LabelTable:
    """Put the rows of several files below each other, over all their classes; a file that lacks a class says that none has it."""
    classes = tuple(dict.fromkeys(name for table in tables for name in table.classes))
    labels = np.zeros((sum(len(table.names) for table in tables), len(classes)), np.int8)
    row = 0
    for table in tables:
        columns = [classes.index(name) for name in table.classes]
        labels[row : row + len(table.names), columns] = table.labels
        row += len(table.names)
    return LabelTable(
        tuple(name for table in tables for name in table.names),
        labels,
        classes,
        tuple(role for table in tables for role in table.roles),
        tuple(dict.fromkeys(note for table in tables for note in table.notes)),
    )


def plain(name: str) -> str:
    """Return the name of a column without regard to case, spaces and dashes."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def some(names: Sequence[str]) -> str:
    """Return the first of some names as part of a sentence."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
