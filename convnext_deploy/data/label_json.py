"""Labels in JSON: a mapping of names to labels, a list of records, or the annotations of COCO."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from convnext_deploy.data.class_names import same_name
from convnext_deploy.data.label_table import FILE_COLUMNS, LABEL_COLUMNS, LabelTable, label_lists, some
from convnext_deploy.data.split_words import plain, split_column


def parse_labels(content: Any) -> LabelTable:
    """Read the value of a JSON file.

    Raises: ValueError, TypeError, KeyError: saying why it does not tell labels.
    """
    if isinstance(content, Mapping) and {"images", "annotations", "categories"} <= content.keys():
        return _of_coco(content)
    if isinstance(content, Mapping):
        pairs = list(content.items())
        roles: tuple[str | None, ...] = (None,) * len(pairs)
    elif isinstance(content, list) and content and all(isinstance(record, Mapping) for record in content):
        keys = {plain(str(key)): key for record in content for key in record}
        file = next((keys[known] for known in FILE_COLUMNS if known in keys), None)
        told = next((keys[known] for known in LABEL_COLUMNS if known in keys), None)
        if file is None or told is None:
            raise ValueError(f"its records have {some(list(keys.values()))}, not 'file' and 'labels'")
        pairs = [(str(record[file]), record.get(told)) for record in content]
        others = {
            str(key): [_cell(record.get(key)) for record in content] for key in keys.values() if key not in (file, told)
        }
        roles = split_column(others)[0] or (None,) * len(pairs)
    else:
        raise ValueError("it is neither a table of names nor a list of records")
    lists = []
    for name, labels in pairs:
        found = [labels] if type(labels) in (str, int) else [] if labels is None else labels
        if not isinstance(found, list) or not all(type(label) in (str, int) for label in found):
            raise ValueError(f"the labels of '{name}' are not a list of names")
        if all(type(label) is int for label in found) and len({*found}) < len(found):  # 0 and 1 for each class
            raise ValueError(
                f"the labels of '{name}' are numbers that come again; expected the names or numbers of those it has"
            )
        lists.append([str(label) for label in found])
    if not pairs:
        raise ValueError("it is empty")
    table = replace(label_lists([str(name) for name, _ in pairs], lists), roles=roles)
    return replace(table, notes=(*table.notes,))


def _cell(value: Any) -> str:
    """Return a value of JSON as it would stand in a table."""
    return "" if value is None else str(value)


def _of_coco(content: Mapping[str, Any]) -> LabelTable:
    """Read which categories have an annotation in each image; crowds count, as they show the category."""
    files = {image["id"]: str(image["file_name"]) for image in content["images"]}
    categories = {each["id"]: same_name(str(each["name"])) for each in content["categories"]}
    annotated = {each["category_id"] for each in content["annotations"]}
    # an export of Roboflow has a category above the others that no annotation names
    classes = [name for number, name in categories.items() if number in annotated]
    places = {number: classes.index(categories[number]) for number in annotated if number in categories}
    rows = {number: row for row, number in enumerate(files)}
    labels = np.zeros((len(files), len(classes)), np.int8)
    for each in content["annotations"]:
        if each["image_id"] not in rows or each["category_id"] not in places:
            raise ValueError(f"annotation {each.get('id')} is of an image or category that is not listed")
        labels[rows[each["image_id"]], places[each["category_id"]]] = 1
    if not files:
        raise ValueError("it lists no images")
    note = "labels are the categories that have an annotation in an image"
    return LabelTable(tuple(files.values()), labels, tuple(classes), (None,) * len(files), (note,))
