"""The arguments of verbs, checked before anything is opened: a wrong one is an error in one line, from wherever it is called."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Union

from convnext_deploy.errors import RecipeError, suggest

_LONGEST = 60  # characters of a wrong value in a message
_KINDS: dict[object, tuple[type | tuple[type, ...], str]] = {
    Path: (os.PathLike, "a path"),
    str: (str, "a text"),
    float: (numbers.Real, "a number"),
    int: (numbers.Integral, "a whole number"),
    bool: (bool, "True or False"),
    type(None): (type(None), "None"),
}


@dataclasses.dataclass(frozen=True, repr=False)
class Record:
    """What records of options have in common: they show what was given alone, and refuse a name that is none of theirs in a line.

    Raises: RecipeError: for such a name.
    """

    def __new__(cls, *args: object, **fields: object) -> Self:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields.keys() - {*known}:
            text = f"{cls.__name__} has no field {name}; its fields are {', '.join(known)}."
            raise RecipeError(text + suggest(name, known))
        return super().__new__(cls)

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in given_fields(self))
        return f"{type(self).__name__}({', '.join(shown)})"


def given_fields(record: Record) -> list[dataclasses.Field[Any]]:
    """Return the fields that were given."""
    return [field for field in dataclasses.fields(record) if getattr(record, field.name) != field.default]


class CallError(RecipeError, TypeError):
    """Too many arguments by place, or one that has to be given is missing."""


def check_type(name: str, value: object, hint: object) -> None:
    """Check a value against an annotation of ours. Raises: RecipeError: naming it, what was found and what was expected."""
    if not _fits(value, hint):
        found = repr(value)
        found = found if len(found) <= _LONGEST else f"{found[: _LONGEST - 1]}…"
        raise RecipeError(f"{name} = {found} is of type {type(value).__name__}; expected {_describe(hint)}.")


def check_arguments(
    function: Callable[..., Any], records: Mapping[str, Sequence[str]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Check the arguments of a verb by its annotations.

    Args:
        function: the verb.
        records: parameter of a verb → the fields of its record of options.
        args: by place.
        kwargs: by name.

    Raises:
        RecipeError: for a value of another type, or a name that is no parameter and may be a field of a record.
        CallError: for too many or too few.
    """
    signature, hints = inspect.signature(function), _hints(function)
    for name in kwargs.keys() - signature.parameters.keys():
        homes = [record for record, fields in records.items() if name in fields and record in signature.parameters]
        text = f"{function.__name__} has no parameter {name}"
        if homes:
            kind = f"{homes[0].capitalize()}Options"
            raise RecipeError(f"{text}; it is a field of {kind}: give {homes[0]}={kind}({name}={kwargs[name]!r}).")
        known = [
            *signature.parameters,
            *(field for record in signature.parameters for field in records.get(record, ())),
        ]
        raise RecipeError(f"{text}; its parameters are {', '.join(signature.parameters)}.{suggest(name, known)}")
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        shown = ", ".join(map(_show, signature.parameters.values()))
        raise CallError(f"{function.__name__}: {error}; it is {function.__name__}({shown}).") from None
    for name, value in bound.arguments.items():
        if name not in records:
            check_type(f"{function.__name__}: {name}", value, hints[name])


def _show(parameter: inspect.Parameter) -> str:
    """Return a parameter as it is given."""
    is_named = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    return f"{parameter.name}=…" if is_named or parameter.default is not parameter.empty else parameter.name


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _fits(value: object, hint: object) -> bool:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return isinstance(value, str)  # whoever uses it says which there are
    if origin in (Sequence, Iterable, tuple):
        return _fits_list(value, hint)
    if hint in _KINDS:
        if isinstance(value, bool) and hint in (int, float):
            return False
        return isinstance(value, _KINDS[hint][0])
    return not isinstance(hint, type) or isinstance(value, hint)


def _fits_list(value: object, hint: object) -> bool:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False
    inside = next(iter(typing.get_args(hint)), Any)
    # what can be gone through only once is looked at where it is used
    return not isinstance(value, Sequence) or all(_fits(entry, inside) for entry in value)


def _describe(hint: object) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if {*parts} >= {Path, str}:
            parts = tuple(part for part in parts if part is not str)  # a path may be a text
        return " or ".join(dict.fromkeys(map(_describe, parts)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin in (Sequence, Iterable, tuple):
        return f"a list, each {_describe(parts[0])}" if parts else "a list"
    if hint in _KINDS:
        return _KINDS[hint][1]
    return f"a {getattr(hint, '__name__', hint)}"
