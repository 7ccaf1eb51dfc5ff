"""The commands that measure again what a report tells, as they run in the folder that the run was started in."""

import os.path
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import BASELINE, CHANGE_LIMITS, SOURCE
from convnext_deploy.reports.record import Report, StageRow

_PROGRAM = "convnext-deploy"
NO_DATA = "none"
"""What stands for the data of a report where nothing was validated."""


def again_commands(report: Report) -> Iterator[str]:
    """Yield the commands that score each artifact again, after one that goes where they work."""
    if report.data == NO_DATA:
        return
    rows = {row.name: row for row in report.rows}
    found = [
        _validate(report, row, rows.get(row.provenance.baseline or ""))
        for row in report.rows
        if row.accuracy is not None
    ]
    if found:
        yield from _go_there(report)
    yield from found


def recipe_command(report: Report) -> str:
    """Return the command that runs the recipe of a report, from a file `recipe.toml`, with what no recipe says of the data."""
    command = " ".join([_PROGRAM, "run", "recipe.toml", *map(shlex.quote, report.data_options), "--out", "runs/again"])
    return "\n".join([*_go_there(report), command])


def data_from(report: Report, folder: str) -> str | None:
    """Return the path of the data from a folder of artifacts, which is told as the report does; None if it is not known.

    Only of both is it known where they lie if they are both absolute, or the report says where the run was started.
    """
    data = PurePath(report.data)
    if data.is_absolute() or _is_built_in(report):
        return report.data
    if report.started_in is None:
        return None
    start = Path(report.started_in)
    return os.path.relpath(start / data, start / folder)


def _is_built_in(report: Report) -> bool:
    return report.judged_on is None and report.data == "digits"


def _go_there(report: Report) -> Iterator[str]:
    if report.started_in is not None:
        yield f"cd {shlex.quote(report.started_in)}"


def _validate(report: Report, row: StageRow, baseline: StageRow | None) -> str:
    words = [_PROGRAM, "validate", row.identity.artifact]
    brought = row.identity.kind in (SOURCE, BASELINE)
    gate = row.provenance.gate
    if baseline is not None:
        words += ["--baseline", baseline.identity.artifact]
        brought = brought or baseline.identity.kind in (SOURCE, BASELINE)
    words += ["--data", report.data, *report.data_options]
    if brought:  # what was made here tells itself how its images are made ready
        words += _flags(report.source_preprocess)
    limits = [(flag, getattr(gate, name)) for name, flag in CHANGE_LIMITS.items()]
    asked = [word for flag, limit in limits if limit is not None for word in (flag, f"{limit:g}")]
    if baseline is not None and asked:
        words += [*asked, *(["--gate-on", gate.on] if gate.on != "point" else [])]
    return shlex.join(words)


def _flags(said: PreprocessSettings) -> Iterator[str]:
    asked: Mapping[str, Any] = said.asked()
    for name, value in asked.items():
        yield f"--{name.replace('_', '-')}"
        yield ",".join(f"{number:g}" for number in value) if isinstance(value, list | tuple) else str(value)
