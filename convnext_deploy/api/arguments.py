"""The arguments of verbs, checked before anything is opened: a wrong one is an error in one line, from wherever it is called.

What fits comes out in the plain form that the verbs work with: numbers of NumPy as those of Python, what can be gone through as a
tuple, and what else stands for a path as `Path`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Union, get_args, get_origin

from convnext_deploy.config.checks import require_choice
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

    Raises: RecipeError: for such a name, or more values than fields.
    """

    def __new__(cls, *args: object, **fields: object) -> Self:
        known = [field.name for field in dataclasses.fields(cls)]
        if len(args) > len(known):
            raise CallError(f"{cls.__name__} has {len(known)} fields, {', '.join(known)}; found {len(args)} values.")
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


def plain(name: str, value: object, hint: object) -> Any:
    """Return a value as an annotation of ours has it. Raises: RecipeError: naming it, what was found and what was expected."""
    try:
        return _plain(value, hint)
    except _MisfitError:
        pass
    for entry in (value,) if isinstance(value, str) else value if isinstance(value, list | tuple) else ():
        if isinstance(entry, str) and (choices := _choices(hint)):
            require_choice(name, entry, choices)
    found = repr(value)
    if "\\x00" in found:
        raise RecipeError(f"{name} = {_short(found)} holds a null character, which no path and no name has.")
    found = _short(found)
    raise RecipeError(f"{name} = {found} is of type {type(value).__name__}; expected {_describe(hint)}.")


def bind_arguments(
    function: Callable[..., Any], records: Mapping[str, Sequence[str]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Return the arguments of a verb as its annotations have them.

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
            bound.arguments[name] = plain(f"{function.__name__}: {name}", value, hints[name])
    return bound


def _show(parameter: inspect.Parameter) -> str:
    """Return a parameter as it is given."""
    is_named = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    return f"{parameter.name}=…" if is_named or parameter.default is not parameter.empty else parameter.name


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


class _MisfitError(Exception):
    """A value is not of a type."""


def _plain(value: object, hint: object) -> Any:
    """Return a value in the form of a type. Raises: _MisfitError: if it has none."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        for option in (type(value),) if type(value) in options else options:
            with contextlib.suppress(_MisfitError):
                return _plain(value, option)
    elif origin is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
    elif origin in (Sequence, Iterable, tuple):
        return _plain_list(value, get_args(hint))
    elif hint in _KINDS:
        if isinstance(value, _KINDS[hint][0]) and not (isinstance(value, bool) and hint in (int, float)):
            return _plain_value(value, hint)
    elif not isinstance(hint, type) or isinstance(value, hint):
        return value
    raise _MisfitError


def _plain_list(value: object, inside: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _MisfitError
    entries = tuple(value)
    if len(inside) > 1 and inside[-1] is not Ellipsis:
        if len(entries) != len(inside):
            raise _MisfitError
        return tuple(map(_plain, entries, inside))
    return tuple(_plain(entry, inside[0]) for entry in entries) if inside else entries


def _plain_value(value: Any, hint: object) -> Any:
    if hint is Path:
        value = value if isinstance(value, Path) else Path(os.fsdecode(value))
    if hint in (Path, str) and "\0" in str(value):
        raise _MisfitError  # no system opens such a file, and each says so in words of its own
    if hint in (int, float) and type(value) not in (int, float):  # of NumPy, or a fraction
        return int(value) if hint is int else float(value)
    return value


def _choices(hint: object) -> tuple[str, ...]:
    """Return the texts that are chosen from, alone or in a list."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _describe(hint: object) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if {*parts} >= {Path, str}:
            parts = tuple(part for part in parts if part is not str)  # a path may be a text
        return " or ".join(dict.fromkeys(map(_describe, parts)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin in (Sequence, Iterable, tuple):
        count = f" of {len(parts)}" if len(parts) > 1 and parts[-1] is not Ellipsis else ""
        return f"a list{count}, each {_describe(parts[0])}" if parts else "a list"
    if hint in _KINDS:
        return _KINDS[hint][1]
    return f"a {getattr(hint, '__name__', hint)}"
