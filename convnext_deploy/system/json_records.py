"""Frozen records from their JSON form, with every field checked against its annotation."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

Record = TypeVar("Record")


def read_record(kind: type[Record], content: object) -> Record:
    """Return the record of which `dataclasses.asdict` and JSON made `content`.

    Fields may be records, tuples, mappings with texts as keys, literals, numbers, texts, flags, or None. A whole number is taken
    for a float; nothing else is converted. A field that is not there has its default.

    Raises: ValueError: naming the first field that is unknown, missing, or not of its type.
    """
    record: Record = _read(kind, content, kind.__name__)
    return record


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, _checked(value, dict, where), where)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        others = [argument for argument in arguments if argument is not types.NoneType]
        fitting = [argument for argument in others if argument is type(value)]  # of `float | str`, say
        return _read((fitting or others)[0], value, where)
    if origin is tuple:
        items = _checked(value, list | tuple, where)
        kinds = [arguments[0]] * len(items) if arguments[-1] is ... else arguments
        if len(kinds) != len(items):
            raise ValueError(f"{where} has {len(items)} entries, and {len(kinds)} were expected")
        pairs = enumerate(zip(kinds, items, strict=True))
        return tuple(_read(kind, item, f"{where}[{place}]") for place, (kind, item) in pairs)
    if origin in (dict, Mapping):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in _checked(value, dict, where).items()}
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}, and one of {', '.join(map(repr, arguments))} was expected")
        return value
    return _checked(value, kind | int if kind is float else kind, where)


def _checked(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {str(value)[:80]!r}, and {getattr(kind, '__name__', kind)} was expected")
    return value


def _read_fields(kind: Any, content: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    if unknown := content.keys() - hints:
        raise ValueError(f"{where} has an unknown field {min(unknown)!r}")
    try:
        return kind(**{key: _read(hints[key], value, f"{where}.{key}") for key, value in content.items()})
    except TypeError as error:  # of the constructor, which names the fields that are missing
        raise ValueError(f"{where}: {error}") from None


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
