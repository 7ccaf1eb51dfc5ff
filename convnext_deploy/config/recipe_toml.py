"""Recipes as TOML files, read strictly: an unknown key or a wrong type is an error that names it."""

import dataclasses
from pathlib import Path
from typing import Any

from convnext_deploy.config.recipe import SOURCE, Gate, Recipe, StageEntry
from convnext_deploy.config.records import read_record, read_value
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.documents import read_toml, reason
from convnext_deploy.errors import RecipeError, suggest

_LARGEST = 1_000_000  # bytes


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises: RecipeError: if it cannot be read, has an unknown key, a value of the wrong type or out of range, or a reference
        to a stage that does not come earlier.
    """
    try:
        table = read_toml(path, _LARGEST)
    except FileNotFoundError:
        raise RecipeError(
            f"there is no recipe {path}; see recipes/README.md for those that come with the project."
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {reason(error)}") from None
    try:
        return _parse_recipe(table)
    except (RecipeError, ValueError) as error:
        raise RecipeError(f"{path}: {error}") from None


def _parse_recipe(table: dict[str, Any]) -> Recipe:
    entries = table.pop("stages", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError("stages must be written as [[stages]] tables.")
    default_gate = read_record(Gate, table.pop("gate", {}), "gate")
    stages: list[StageEntry] = []
    for entry in entries:
        stages.append(_parse_stage(entry, default_gate, stages[-1].name if stages else None, bool(table.get("source"))))
    return read_record(Recipe, {**table, "stages": tuple(stages)}, "recipe")


def _parse_stage(entry: dict[str, Any], default_gate: Gate, previous: str | None, has_source: bool) -> StageEntry:
    kind = entry.pop("kind", None)
    if not isinstance(kind, str) or kind not in STAGE_KINDS:
        near = suggest(str(kind), STAGE_KINDS)
        raise RecipeError(f"stage kind {kind!r} is unknown.{near} Known: {', '.join(STAGE_KINDS)}.")
    config = stage_config(kind)
    name = read_value(str, entry.pop("name", kind), "stage: name")
    source = read_value(str | None, entry.pop("source", None), f"stage '{name}': source")
    if source is None and config.needs_source:
        source = previous or (SOURCE if has_source else None)
    own = entry.pop("gate", {})
    merged = {**_set_fields(default_gate), **own} if isinstance(own, dict) else own
    gate = read_record(Gate, merged, f"stage '{name}' gate")
    return StageEntry(name, read_record(config, entry, f"stage '{name}'"), source, gate)


def _set_fields(record: Gate) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(record).items() if value is not None}
