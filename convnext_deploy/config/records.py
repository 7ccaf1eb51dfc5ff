"""Read frozen dataclasses from JSON or TOML, strictly by their type hints and limits: `Annotated[int, Between(1, 8)]`."""

import contextlib
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from convnext_deploy.errors import DeployError, suggest

Record = TypeVar("Record")
_SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True)
class Between:
    """A limit on a number, both ends included."""

    least: float
    most: float

    def holds(self, value: float) -> bool:
        """Return whether the number is within the limits; NaN is not."""
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Matching:
    """A limit on a text: all of it must match the regular expression. `expected` says so in words."""

    pattern: str
    expected: str

    def holds(self, value: str) -> bool:
        """Return whether the text matches."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.expected


def read_record(record_type: type[Record], table: object, where: str) -> Record:
    """Return a record whose every field was checked: known, of its type, within its limits; a float is finite.

    Args:
        record_type: a dataclass.
        table: what a reader of JSON or TOML gives; records that are already made are taken as they are.
        where: what the table is, for messages, such as `stage 'ptq'`.

    Raises: ValueError: naming the field, what was found and what was expected.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, found {_shown(table)}.")
    hints = _hints(typing.cast(Any, record_type))
    fields = {field.name: field for field in dataclasses.fields(record_type)}  # type: ignore[arg-type]  # is a dataclass
    for key in table:
        if key not in fields:
            raise ValueError(
                f"{where}: unknown key {_shown(key)}.{suggest(str(key), fields)} Known: {', '.join(fields)}."
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise ValueError(f"{where}: '{name}' is missing.")
    values = {key: read_value(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return record_type(**values)
    except DeployError as error:
        raise ValueError(f"{where}: {error}") from None


@functools.cache
def _hints(record_type: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(record_type, include_extras=True)
    if hasattr(record_type, "__post_init__"):  # such a record checks its choices itself, and may say more of them
        hints |= {name: Any for name, hint in hints.items() if typing.get_origin(hint) is Literal}
    return hints


def read_value(hint: Any, value: object, where: str) -> Any:
    """Return a value of the hinted type: of dataclasses, tuples, mappings, unions, literals, limits and plain types.

    Raises: ValueError: as `read_record`.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return value
    if origin is Annotated:
        found = read_value(arguments[0], value, where)
        for limit in arguments[1:]:
            if not limit.holds(found):
                raise ValueError(f"{where} = {_shown(value)} is out of range; expected {limit}.")
        return found
    if dataclasses.is_dataclass(hint):
        return read_record(typing.cast(type[Any], hint), value, where)
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            known = f"{', '.join(map(repr, arguments))}.{suggest(str(value), map(str, arguments))}"
            raise ValueError(f"{where} = {_shown(value)} is unknown; expected one of {known}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, value, "a table")
        return {key: read_value(arguments[1], item, f"{where}: {_name(key)}") for key, item in value.items()}
    if not isinstance(value, (int, float) if hint is float else hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong_type(where, value, hint.__name__)
    return _finite(typing.cast(float, value), where) if hint is float else value


def _read_union(alternatives: tuple[Any, ...], value: object, where: str) -> Any:
    """Return the value as the first type that it can be; the error is that of the type it was meant to be."""
    if value is None and types.NoneType in alternatives:
        return None
    wanted = [hint for hint in alternatives if hint is not types.NoneType]
    if isinstance(value, list | tuple):
        wanted.sort(key=lambda hint: getattr(hint, "__origin__", None) is not tuple)
    for hint in wanted if len(wanted) > 1 else ():
        with contextlib.suppress(ValueError):
            return read_value(hint, value, where)
    return read_value(wanted[0], value, where)


def _read_tuple(arguments: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong_type(where, value, "a list")
    hints = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
    if len(value) != len(hints):
        raise ValueError(f"{where} = {_shown(value)} has {len(value)} entries; expected {len(hints)}.")
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(read_value(hint, item, f"{where}[{place}]") for place, (hint, item) in pairs)


def _finite(value: float, where: str) -> float:
    try:
        found = float(value)
    except OverflowError:  # of an integer
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{where} = {found} is out of range; expected a finite number.")
    return found


def _wrong_type(where: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{where} = {_shown(value)} has the wrong type; expected {expected}.")


def _name(key: str) -> str:
    return key if key.isprintable() and len(key) <= _SHOWN else _shown(key)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
