"""Read frozen dataclasses from JSON or TOML with msgspec, by their type hints and limits: `Annotated[int, between(1, 8)]`.

msgspec decides what is of which type. In dataclasses it lets unknown keys and infinite numbers pass, which are refused here, and
its errors name neither what was found nor what is known instead: an error is traced to the smallest part that it is about, and
said in our words. pydantic takes five times as long to import, and cattrs converts what is of another type without a word.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from convnext_deploy.errors import DeployError, suggest

Record = TypeVar("Record")
Part = tuple[Any, object, str]  # the hint, the value, and what it is
_SHOWN = 200  # characters of a value in a message


def between(least: float, most: float) -> msgspec.Meta:
    """Limit a number, both ends included; NaN is outside."""
    return msgspec.Meta(ge=least, le=most, description=f"{least:g} to {most:g}")


def matching(pattern: str, expected: str) -> msgspec.Meta:
    r"""Limit a text: all of it must match the regular expression, of which `expected` tells in words."""
    return msgspec.Meta(pattern=rf"\A(?:{pattern})\Z", description=expected)


def read_record(record_type: type[Record], table: object, where: str) -> Record:
    """Return a record whose every field was checked: known, of its type, within its limits; a float is finite.

    Args:
        record_type: a dataclass.
        table: what a reader of JSON or TOML gives; records that are already made are taken as they are.
        where: what the table is, for messages, such as `stage 'ptq'`.

    Raises: ValueError: naming the field, what was found and what was expected.
    """
    return typing.cast(Record, read_value(record_type, table, where))


def read_value(hint: Any, value: object, where: str) -> Any:
    """Return a value of the hinted type: of dataclasses, tuples, mappings, unions, literals, limits and plain types.

    Raises: ValueError: as `read_record`.
    """
    try:
        found = msgspec.convert(value, hint)
    except (msgspec.ValidationError, DeployError) as error:
        meant, limit = _meant(hint, value)
        for part in _parts(meant, value, where):
            read_value(*part)  # raises for the part that it is about
        own = str(error) if isinstance(error, DeployError) else ""
        raise ValueError(f"{where}: {own}" if own else where + _say(meant, limit, value)) from None
    _check_rest(found, value, where)
    return found


def _meant(hint: Any, value: object) -> tuple[Any, str | None]:
    """Return the one of several types that a value was meant to be, and its limit in words."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        wanted = [each for each in typing.get_args(hint) if each is not types.NoneType]
        wanted.sort(key=lambda each: isinstance(value, list) and typing.cast(Any, typing.get_origin(each)) is not tuple)
        hint = wanted[0]
    if typing.get_origin(hint) is Annotated:
        return typing.get_args(hint)[0], hint.__metadata__[0].description
    return hint, None


def _parts(hint: Any, value: object, where: str) -> Iterator[Part]:
    """Yield what a value is made of. Raises: ValueError: if that is too much or too little."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(hint):
        _check_keys(hint, value, where)
        for field in dataclasses.fields(hint):
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and field.name not in value:
                raise ValueError(f"{where}: '{field.name}' is missing.")
        hints = typing.get_type_hints(hint, include_extras=True)
        yield from ((hints[key], item, f"{where}: {key}") for key, item in value.items())
    elif isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
        yield from ((arguments[1], item, f"{where}: {name_shown(key)}") for key, item in value.items())
    elif isinstance(value, list | tuple) and origin is tuple:
        each = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        if len(value) != len(each):
            raise ValueError(f"{where} = {shown(value)} has {len(value)} entries; expected {len(each)}.")
        yield from ((each[place], item, f"{where}[{place}]") for place, item in enumerate(value))


def _say(hint: Any, limit: str | None, value: object) -> str:
    """Return what is wrong with a value whose parts are as they should be, as the end of a sentence."""
    origin = typing.get_origin(hint) or hint
    if dataclasses.is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return f" must be a table, found {shown(value)}."
    if isinstance(value, float) and hint is float and not math.isfinite(value):
        limit = "a finite number"
    if limit is not None and (origin is Literal or type(value) is hint or (hint is float and type(value) is int)):
        return f" = {shown(value)} is out of range; expected {limit}."
    if origin is Literal:
        known = typing.get_args(hint)
        nearest = suggest(str(value), map(str, known))
        return f" = {shown(value)} is unknown; expected one of {', '.join(map(repr, known))}.{nearest}"
    if hint is float and type(value) is int:
        return f" = {shown(value)} is out of range; expected a finite number."
    return f" = {shown(value)} has the wrong type; expected {'a list' if origin is tuple else hint.__name__}."


def _check_rest(made: object, value: object, where: str) -> None:
    """Check what msgspec lets pass. Raises: ValueError: at an unknown key, or a number that is not finite."""
    if isinstance(made, float) and not math.isfinite(made):
        raise ValueError(f"{where} = {made} is out of range; expected a finite number.")
    if isinstance(value, Mapping):
        if dataclasses.is_dataclass(made):
            _check_keys(type(made), value, where)
        inside = made if isinstance(made, Mapping) else vars(made)
        for key, item in value.items():
            _check_rest(inside[key], item, f"{where}: {name_shown(key)}")
    elif isinstance(made, tuple | list) and isinstance(value, tuple | list):
        for place, (each, item) in enumerate(zip(made, value, strict=True)):
            _check_rest(each, item, f"{where}[{place}]")


def _check_keys(record_type: Any, table: Mapping[Any, object], where: str) -> None:
    known = [field.name for field in dataclasses.fields(record_type)]
    gone: Mapping[Any, str] = getattr(record_type, "GONE", {})
    for key in table:
        if key in gone:
            raise ValueError(f"{where}: there is no {key} any more: {gone[key]}")
        if key not in known:
            nearest = suggest(str(key), known)
            raise ValueError(f"{where}: unknown key {shown(key)}.{nearest} Known: {', '.join(known)}.")


def name_shown(key: object) -> str:
    """Return a key as it may stand in a message."""
    return key if isinstance(key, str) and key.isprintable() and len(key) <= _SHOWN else shown(key)


def shown(value: object) -> str:
    """Return a value as it may stand in a message: in one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
