"""Labels in a table of text: a list of labels in a cell, or a column of 0 and 1 for each of them."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from convnext_deploy.data.class_names import same_name
from convnext_deploy.data.label_table import FILE_COLUMNS, LABEL_COLUMNS, LabelTable, label_lists, some
from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.data.split_words import plain, split_column, tells_split, without_point
from convnext_deploy.metrics.multi_label import UNKNOWN

_SEPARATORS = {"|": "'|'", ";": "';'", ",": "commas", " ": "spaces"}
_EXCEL = re.compile(
    r"sep=.?\n", re.IGNORECASE
)  # its first line where a table is divided by other characters than its own
_UNNAMED = re.compile(r"(unnamed: \d+)?", re.IGNORECASE)  # as pandas calls a column of row numbers
_YES, _NO, _UNSURE = (
    {"1", "true", "t", "yes", "y"},
    {"0", "false", "f", "no", "n"},
    {"", "-1", "nan", "na", "none", "unknown"},
)


def parse_table(text: str) -> LabelTable:
    """Read a table whose first line names the columns, or, of two columns, is an image already.

    Raises: ValueError, csv.Error: saying why that is no table of labels.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    if _EXCEL.match(text):
        text = text.partition("\n")[2]
    first = text.split("\n", 1)[0]
    delimiter = max((",", ";", "\t"), key=lambda each: (first.count(each), each == ","))
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        if any(row)
    ]
    if not rows:
        raise ValueError("it is empty")
    if _is_image_name(rows[0][0]):
        if len(rows[0]) != 2:
            raise ValueError(f"its first line, which begins with '{rows[0][0]}', does not name the columns")
        rows.insert(0, ["filename", "labels"])
    head, body = [same_name(name) for name in rows[0]], rows[1:]
    if not body:
        raise ValueError("it has no rows")
    for number, row in enumerate(body, 2):
        if len(row) != len(head):
            raise ValueError(f"row {number} has {len(row)} cells, the first {len(head)}")
    if twice := [name for name, count in Counter(head).items() if count > 1]:
        raise ValueError(f"two columns are called '{twice[0]}'")
    columns = {name: [row[place] for row in body] for place, name in enumerate(head)}
    file = next((name for known in FILE_COLUMNS for name in head if plain(name) == known), head[0])
    names = tuple(columns[file])
    words, used = split_column({name: cells for name, cells in columns.items() if name != file})
    roles = words or (None,) * len(names)
    rest = {name: cells for name, cells in columns.items() if name not in {file, *used} and not tells_split(name)}
    told = next((name for known in LABEL_COLUMNS for name in rest if plain(name) == known), None)
    yes_or_no = [name for name, cells in rest.items() if not _UNNAMED.fullmatch(name) and _is_binary(cells)]
    if told is None and not yes_or_no and len(rest) == 1:
        told = next(iter(rest))
    if told is not None:
        lists, how = _lists(rest[told])
        found = replace(label_lists(names, lists), roles=roles, notes=how)
        labelled = [told]
    elif yes_or_no:
        labels = np.array([[_answer(cell) for cell in rest[name]] for name in yes_or_no], np.int8).T
        found = LabelTable(names, labels, tuple(yes_or_no), roles, listed=False)
        said = f"each column of 0 and 1 is a label: {', '.join(yes_or_no)[:200]}"
        found = _of_one_question(found) if len(yes_or_no) == 1 else replace(found, notes=(said,))
        labelled = yes_or_no
    else:
        raise ValueError(f"none of its columns ({', '.join(head)[:200]}) is called 'labels', or has 0 and 1 alone")
    if unused := [name for name in columns if name not in {file, *used, *labelled}]:
        named = [name or "one without a name" for name in unused]
        found = replace(found, notes=(*found.notes, f"columns that are no labels and not used: {some(named)}"))
    return found


def _of_one_question(table: LabelTable) -> LabelTable:
    """Return a single column of yes and no as two classes, of which every image has one."""
    answers, (name,) = table.labels[:, 0], table.classes
    known = np.flatnonzero(answers != UNKNOWN)
    notes: tuple[str, ...] = (f"the one column of labels, {name}, is read as two classes, 'not {name}' and '{name}'",)
    if (missing := len(answers) - len(known)) > 0:
        notes += (f"{missing:,} rows do not tell it and are not used",)
    return LabelTable(
        tuple(table.names[row] for row in known),
        np.stack([1 - answers[known], answers[known]], axis=1),
        (f"not {name}", name),
        tuple(table.roles[row] for row in known),
        notes,
        listed=False,
    )


def _is_binary(cells: Iterable[str]) -> bool:
    values = {without_point(cell) for cell in cells}
    return values <= _YES | _NO | _UNSURE and bool(values & (_YES | _NO))


def _answer(cell: str) -> int:
    value = without_point(cell)
    return 1 if value in _YES else 0 if value in _NO else UNKNOWN


def _lists(cells: Sequence[str]) -> tuple[list[list[str]], tuple[str, ...]]:
    """Divide cells into labels, and say at what."""
    cells = ["" if cell.lower() == "nan" else cell for cell in cells]
    bare = [cell.strip("[]() ").replace("'", "").replace('"', "") if cell[:1] in "[(" else cell for cell in cells]
    separator = next((each for each in "|;," if any(each in cell for cell in bare)), None)
    if separator is None and _space_separates(bare):
        separator = " "
    if separator is None:
        whole = next((cell for cell in bare if " " in cell), None)
        note = f"labels such as '{whole}' are taken whole; several in a cell are to be separated by '|'"
        return [[cell] if cell else [] for cell in bare], () if whole is None else (note,)
    parts = [[part.strip() for part in cell.split(separator) if part.strip()] for cell in bare]
    return parts, (f"labels are separated by {_SEPARATORS[separator]}",)


def _space_separates(cells: Sequence[str]) -> bool:
    """Whether spaces stand between labels, not within names such as 'traffic light': most parts come again in other cells."""
    several = {cell for cell in cells if " " in cell}
    seen = Counter(part for cell in {*cells} for part in {*cell.split()})
    parts = {part for cell in several for part in cell.split()}
    return 2 * sum(seen[part] > 1 for part in parts) > len(parts)


def _is_image_name(cell: str) -> bool:
    return Path(cell).suffix.lower() in IMAGE_EXTENSIONS
