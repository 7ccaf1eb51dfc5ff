"""Read a file of labels: CSV or TSV with lists of labels or a column for each, JSON, JSON lines, COCO."""

import csv
from dataclasses import replace
from pathlib import Path

from convnext_deploy.data.decoding import printable
from convnext_deploy.data.label_csv import parse_table
from convnext_deploy.data.label_json import parse_labels
from convnext_deploy.data.label_table import LabelTable
from convnext_deploy.data.split_words import roles_of
from convnext_deploy.documents import parse_json, read_text, reason
from convnext_deploy.errors import DataError
from convnext_deploy.metrics.multi_label import UNKNOWN

_LARGEST_FILE = 2_000_000_000  # bytes; COCO's instances have 0.5 GB
_EXPECTED = (
    "a table with the names of the images and their labels (filename,labels with 'cat dog', or a column of 0 and 1 for each "
    'label), JSON such as {"1.jpg": ["cat", "dog"]}, or annotations of COCO'
)


def read_labels(path: Path) -> LabelTable:
    """Read a file of labels. Raises: DataError: if it cannot be read, or does not tell which image has which labels."""
    try:
        text = read_text(path, _LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise DataError(f"the labels in {printable(path)} cannot be read ({reason(error)}).") from None
    try:
        if path.suffix.lower() == ".json":
            found = parse_labels(parse_json(text))
        elif path.suffix.lower() == ".jsonl":
            found = parse_labels([parse_json(line) for line in text.splitlines() if line.strip()])
        else:
            found = parse_table(text)
        return _join_rows(replace(found, roles=roles_of(found.roles, found.names, path)))
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(
            f"{printable(path)} does not tell the labels of images ({printable(str(error))}); expected {_EXPECTED}."
        ) from None


def _join_rows(table: LabelTable) -> LabelTable:
    """Join rows of one image: of lists of labels, which some files have one a row. Raises: ValueError: if rows contradict."""
    if not table.classes:
        raise ValueError("no image has a label")
    first: dict[str, int] = {}
    kept: list[int] = []
    labels = table.labels.copy()
    joined = 0
    for row, name in enumerate(table.names):
        if not name:
            raise ValueError(f"row {row + 2} names no image")
        place = first.setdefault(name, row)
        if place == row:
            kept.append(row)
            continue
        joined += 1
        if table.roles[place] != table.roles[row]:
            raise ValueError(f"'{name}' stands in two splits")
        if (labels[place] == labels[row]).all():
            continue
        if (labels[[place, row]] == UNKNOWN).any() or not table.listed:
            raise ValueError(f"'{name}' stands there twice, with different labels")
        labels[place] |= labels[row]
    notes = table.notes
    if joined:
        notes = (*notes, f"{joined:,} rows are of an image that stands there already: the labels are joined")
    return LabelTable(
        tuple(table.names[row] for row in kept),
        labels[kept],
        table.classes,
        tuple(table.roles[row] for row in kept),
        notes,
        table.listed,
    )
