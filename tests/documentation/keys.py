"""The keys of recipes as Markdown, from the records that the loader fills: `python -m tests.documentation.keys` writes them anew.

In `recipes/README.md` they stand between `<!-- keys: KIND -->` and `<!-- end -->`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from convnext_deploy.config.fit import Augmentation, FitConfig
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import Gate, LatencyGoal, Recipe
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.system.files import write_text

DOCUMENT = Path(__file__).parents[2] / "recipes" / "README.md"
_PLACE = re.compile(r"(<!-- keys: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ATTRIBUTE = re.compile(r"^ {4}(\w+): ((?:.+\n?)(?: {8}.+\n?)*)", re.MULTILINE)
_TYPES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true`, `false`",
    dict: "table of patterns and choices",
}
RECORDS: dict[str, type[Any]] = {
    "recipe": Recipe,
    "source_preprocess": PreprocessSettings,
    "gate": Gate,
    "latency_goals": LatencyGoal,
    "model": ModelConfig,
    "fit": FitConfig,
    **{kind: stage_config(kind) for kind in STAGE_KINDS},
}


def fill(text: str) -> str:
    """Return a Markdown text with the tables of keys between its markers. Raises: KeyError: if a marker names no record."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{describe(RECORDS[found[2]])}\n\n{found[3]}", text)


def describe(record: type[Any]) -> str:
    """Return what a record's docstring says, and the table of its keys."""
    meanings: dict[str, str] = {}
    prose = []
    for owner in (Augmentation, record) if issubclass(record, Augmentation) else (record,):
        text, _, attributes = inspect.cleandoc(owner.__doc__ or "").partition("\nAttributes:\n")
        prose.append(text.strip())
        meanings |= {found[1]: " ".join(found[2].split()) for found in _ATTRIBUTE.finditer(attributes)}
    hints = typing.get_type_hints(record)
    fields = [field for field in dataclasses.fields(record) if field.name != "stages"]
    lines = [
        [
            f"`{field.name}`",
            _values(hints[field.name]),
            _default(field),
            *([meanings.get(field.name, "")] if meanings else []),
        ]
        for field in fields
    ]
    head = ["key", "values", "default", *(["meaning"] if meanings else [])]
    table = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]
    return "\n\n".join([*prose, "\n".join(table)])


def _values(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_values(each) for each in arguments if each is not types.NoneType)
    if origin is Literal:
        return ", ".join(f"`{each!r}`".replace("'", '"') for each in arguments)
    if origin is tuple:
        return f"list of {_values(arguments[0])}"
    if dataclasses.is_dataclass(hint):
        return "a table of its own"
    return _TYPES[origin or hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "must be given"
    if dataclasses.is_dataclass(value):
        record: Any = type(value)
        plain = record()
        own = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if getattr(value, f.name) != getattr(plain, f.name)
        }
        return ", ".join(f"`{name} = {_toml(each)}`" for name, each in own.items()) or "as there"
    return "none" if value is None or value == {} else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    write_text(DOCUMENT, fill(DOCUMENT.read_text(encoding="utf-8")))
