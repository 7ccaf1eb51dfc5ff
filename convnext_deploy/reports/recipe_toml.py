"""The recipe of a report, as the TOML file that would make it again."""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from convnext_deploy.config.recipe import Gate, LatencyGoal
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.reports.escaping import quoted
from convnext_deploy.reports.record import Report, StageRow


def write_recipe(report: Report) -> str | None:
    """Return the text of a recipe file that does what the run did; None where the report does not know the settings."""
    stages = [text for row in report.rows if (text := write_stage(row)) is not None]
    if not stages:
        return None
    head = [f"name = {quoted(report.recipe)}", f"seed = {report.seed}"]
    if report.data != "none":
        head.append(f"data = {quoted(report.data)}")
    if report.unlabelled is not None:
        head.append(f"unlabelled = {quoted(report.unlabelled)}")
    if report.source is not None:
        head.append(f"source = {quoted(report.source)}")
        if asked := report.source_preprocess.asked():
            head.append(f"source_preprocess = {_value(asked)}")
        if report.source_output is not None:
            head.append(f"source_output = {quoted(report.source_output)}")
    goals = [_goal(goal) for goal in report.latency_goals]
    return "\n".join(head) + "\n\n" + "\n".join([*goals, *stages])


def _goal(goal: LatencyGoal) -> str:
    told = {name: value for name, value in dataclasses.asdict(goal).items() if value is not None}
    return "\n".join(["[[latency_goals]]", *(f"{name} = {_value(value)}" for name, value in told.items())]) + "\n"


def write_stage(row: StageRow) -> str | None:
    """Return the `[[stages]]` table of a row; None for what no recipe asked for, or if its settings are not known."""
    made = row.provenance
    if not made.config or row.identity.kind not in STAGE_KINDS or made.for_comparison:
        return None
    lines = ["[[stages]]", f"kind = {quoted(row.identity.kind)}", f"name = {quoted(row.name)}"]
    if "source" in made.inputs:
        lines.append(f"source = {quoted(made.inputs['source'])}")
    asked = dataclasses.asdict(made.gate)
    gate = {key: value for key, value in asked.items() if value != getattr(Gate, key)}
    if gate:
        lines.append(f"gate = {_value(gate)}")
    return "\n".join([*lines, *_settings(made.config, stage_config(row.identity.kind), "stages")]) + "\n"


def _settings(config: Mapping[str, Any], record: type[Any], table: str) -> Iterator[str]:
    """Yield the lines of all settings that are not the usual ones; tables come last, as TOML wants it."""
    hints = typing.get_type_hints(record)
    defaults = {field.name: _default(field) for field in dataclasses.fields(record)}
    given = {key: value for key, value in config.items() if value is not None and value != defaults.get(key)}
    for key, value in given.items():
        if not dataclasses.is_dataclass(hints.get(key)):
            yield f"{key} = {_value(value)}"
    for key, value in given.items():
        if dataclasses.is_dataclass(hints.get(key)):
            yield f"[{table}.{key}]"
            yield from _settings(value, typing.cast(type[Any], hints[key]), f"{table}.{key}")


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return the usual value as JSON gives it; None for a field without one."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = None if field.default is dataclasses.MISSING else field.default
    return json.loads(json.dumps(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value))  # type: ignore[arg-type]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{quoted(key)} = {_value(entry)}" for key, entry in value.items())
        return f"{{ {inside} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)
