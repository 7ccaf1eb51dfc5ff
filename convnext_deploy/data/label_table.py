"""Which labels images have, as a table, whatever kind of file told it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.data.class_names import are_numbers, same_name

FILE_COLUMNS = (
    "filename", "file_name", "file", "filepath", "file_path", "path", "fname", "image", "image_name", "image_path", "image_file",
    "image_id", "imageid", "image_index", "img", "img_name", "img_path", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "labels", "label", "classes", "class", "class_name", "class_names", "categories", "category", "tags", "tag", "targets",
    "target", "finding_labels", "finding_label", "findings", "labelname", "label_name",
)  # fmt: skip
"""Names of columns that tell what images are called, and their labels; see `split_words.plain`, and there those of splits."""
_ANSWERS = {"0", "1", "0.", "1.", "0.0", "1.0", "-1", "true", "false"}  # of which vectors are made, one for each class
_NOTHING = {"no finding", "no_finding", "none", "nothing"}  # labels that say that there is none


@dataclass(frozen=True)
class LabelTable:
    """Rows: what images are called, and which labels they have, `(N, K)`: 1, 0, or `UNKNOWN` where that is not told.

    `roles`: `train`, `validation` or `test` for each row, until `read_labels` has looked at them in the words of the file; None
    where it does not say. `notes`: how it was read. `listed`: the labels of an image are a list, so that those of several rows can
    be joined; otherwise each row answers for every label.
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
    """Return the table of images and lists of their labels; one such as 'No Finding', if always alone, says that there is none.

    Raises: ValueError: if the lists are vectors, an answer for each class.
    """
    _refuse_vectors(lists)
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


def _refuse_vectors(lists: Sequence[Sequence[str]]) -> None:
    """Raises: ValueError: if all lists are of one length and of 0 and 1, which would be read as two labels by these names."""
    lengths = {len(labels) for labels in lists if labels}
    if len(lengths) == 1 and max(lengths) > 1 and {label.lower() for labels in lists for label in labels} <= _ANSWERS:
        raise ValueError(
            f"the labels of each image are {max(lengths)} times 0 or 1, an answer for each class and no list of labels; write the "
            "names or numbers of those that an image has, or a column of 0 and 1 for each"
        )


def join_tables(tables: Sequence[LabelTable]) -> LabelTable:
    """Put the rows of several files below each other, over all their classes; a file that lacks a class says that none has it.

    Classes that are numbers come in their order, as those of shards do: a network that names none has its outputs in it.
    """
    classes = tuple(dict.fromkeys(name for table in tables for name in table.classes))
    if are_numbers(classes):
        classes = tuple(sorted(classes, key=int))
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


def some(names: Sequence[str]) -> str:
    """Return the first of some names as part of a sentence."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
