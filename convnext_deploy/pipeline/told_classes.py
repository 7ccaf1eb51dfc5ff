"""The names of a foreign network's classes, where its file, the arguments of its training or a file beside it tell them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.records import name_shown
from convnext_deploy.data.class_names import CLASS_FILES, parse_names, read_class_names
from convnext_deploy.documents import is_plain_line
from convnext_deploy.errors import DataError

_KEYS = (
    "class_names", "classes", "CLASSES", "labels", "class_to_idx", "idx_to_class", "id2label", "label2id", "label_names", "names",
)  # fmt: skip


def find_class_names(
    path: Path, spec: ModelSpec, arguments: Mapping[str, Mapping[str, Any]], *, alone: bool
) -> tuple[tuple[str, ...] | None, list[str]]:
    """Return the names, or None where nothing tells them, and what is worth knowing.

    Args:
        path: of the weights.
        spec: their network; names of another number of classes do not belong to it.
        arguments: tables of what the training was called with, by where they stand.
        alone: the folder holds no other weights, so that a file of names beside them is theirs.
    """
    remarks = []
    for origin, table in arguments.items():
        for key, told in names_of_tables(table):
            if len(told) == spec.num_classes:
                return told, [f"{path.name}: names of the classes from {origin} in the file"]
            remarks.append(_of_other_number(path, f"{key} of {origin} in the file", len(told), spec))
        if isinstance(given := table.get("class_map"), str) and given:
            return _mapped(path, spec, given)
    beside = next((path.parent / name for name in CLASS_FILES if alone and (path.parent / name).is_file()), None)
    names = None if beside is None else read_class_names(beside)
    if beside is not None and names is not None and len(names) == spec.num_classes:
        return names, [f"{path.name}: names of the classes from {beside.name} beside it"]
    if beside is not None and names is not None:
        remarks.append(_of_other_number(path, f"{beside.name} beside it", len(names), spec))
    return None, remarks


def _of_other_number(path: Path, origin: str, count: int, spec: ModelSpec) -> str:
    return (
        f"{path.name}: {origin} names {count:,} classes, and the network has {spec.num_classes:,}: they are not taken"
    )


def names_of_tables(table: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what may be the names of classes among the arguments of a training, each with the argument."""
    inner = [value for value in table.values() if isinstance(value, Mapping)]
    for place in (table, *inner):
        for key in _KEYS:
            try:
                names = tuple(parse_names(place.get(key)))
                if (
                    names
                    and all(map(is_plain_line, names))
                    and names != tuple(f"LABEL_{number}" for number in range(len(names)))
                ):  # transformers' own
                    yield key, names
            except (ValueError, TypeError):
                continue


def _mapped(path: Path, spec: ModelSpec, given: str) -> tuple[tuple[str, ...] | None, list[str]]:
    """Read timm's class map, which lies where it lay, or beside the weights: text with a name per line."""
    places = (Path(given), path.parent / Path(given).name)
    found = next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113  (false for names no file can have)
    try:
        names = None if found is None else read_class_names(found)
    except DataError:
        names = None
    if names is not None and len(names) == spec.num_classes:
        return names, [f"{path.name}: names of the classes from {found}, the class map that its training was given"]
    return None, [
        f"{path.name}: its training was given the class map {name_shown(given)}, which is not at hand, so that the order of the "
        "classes is not known: give the names with --classes FILE"
    ]
