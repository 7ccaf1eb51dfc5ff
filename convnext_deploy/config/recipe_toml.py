"""Recipes as TOML files, read strictly: an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from convnext_deploy.config.recipe import SOURCE, Gate, Recipe, StageEntry
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.errors import RecipeError, suggest


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises: RecipeError: if it cannot be read, has an unknown key, a value of the wrong type or out of range, or a reference
        to a stage that does not come earlier.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            f"there is no recipe {path}; see recipes/README.md for those that come with the project."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from None
    try:
        return _parse_recipe(table)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _parse_recipe(table: dict[str, Any]) -> Recipe:
    entries = table.pop("stages", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError("stages must be written as [[stages]] tables.")
    default_gate = _parse_record(Gate, table.pop("gate", {}), "gate")
    stages: list[StageEntry] = []
    for entry in entries:
        stages.append(_parse_stage(entry, default_gate, stages[-1].name if stages else None, bool(table.get("source"))))
    recipe: Recipe = _parse_record(Recipe, {**table, "stages": tuple(stages)}, "recipe")
    return recipe


def _parse_stage(entry: dict[str, Any], default_gate: Gate, previous: str | None, has_source: bool) -> StageEntry:
    kind = entry.pop("kind", None)
    if not isinstance(kind, str) or kind not in STAGE_KINDS:
        near = suggest(str(kind), STAGE_KINDS)
        raise RecipeError(f"stage kind {kind!r} is unknown.{near} Known: {', '.join(STAGE_KINDS)}.")
    config = stage_config(kind)
    name = _parse_value(str, entry.pop("name", kind), "stage: name")
    source = _parse_value(str | None, entry.pop("source", None), f"stage '{name}': source")
    if source is None and config.needs_source:
        source = previous or (SOURCE if has_source else None)
    own = entry.pop("gate", {})
    merged = {**_set_fields(default_gate), **own} if isinstance(own, dict) else own
    gate = _parse_record(Gate, merged, f"stage '{name}' gate")
    return StageEntry(name, _parse_record(config, entry, f"stage '{name}'"), source, gate)


def _set_fields(record: Gate) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(record).items() if value is not None}


def _parse_record(record_type: type[Any], table: object, where: str) -> Any:
    if not isinstance(table, dict):
        raise RecipeError(f"{where} must be a table, found {table!r}.")
    hints = typing.get_type_hints(record_type)
    fields = {f.name: f for f in dataclasses.fields(record_type)}
    for key in table:
        if key not in fields:
            raise RecipeError(f"{where}: unknown key '{key}'.{suggest(key, fields)} Known: {', '.join(fields)}.")
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise RecipeError(f"{where}: '{name}' is missing.")
    try:
        return record_type(**{key: _parse_value(hints[key], value, f"{where}: {key}") for key, value in table.items()})
    except RecipeError as error:
        raise RecipeError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _parse_value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if dataclasses.is_dataclass(value) else _parse_record(typing.cast(type[Any], hint), value, where)
    if origin is types.UnionType:
        if value is None and types.NoneType in arguments:
            return None
        # of several types the tuple is meant where a list is found
        wanted = [a for a in arguments if a is not types.NoneType]
        tuples = [a for a in wanted if typing.get_origin(a) is tuple]
        return _parse_value(tuples[0] if tuples and isinstance(value, list | tuple) else wanted[0], value, where)
    if origin is Literal:
        return value  # the record checks its choices itself
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where} = {value!r} has the wrong type; expected a list.")
        return tuple(_parse_value(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where} = {value!r} has the wrong type; expected a table.")
        return {key: _parse_value(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where} = {value!r} has the wrong type; expected {hint.__name__}.")
    return value
