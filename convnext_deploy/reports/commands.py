"""The commands that measure again what a report tells, as they run in the folder that the run was started in."""

import os.path
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.preprocessing import ASKED
from convnext_deploy.config.choices import CHANGE_LIMITS
from convnext_deploy.config.preprocess import PreprocessSettings, option_text
from convnext_deploy.config.recipe import BASELINE, SOURCE
from convnext_deploy.data.datasets import BUILT_IN
from convnext_deploy.reports.record import Report, StageRow

_PROGRAM = "convnext-deploy"
_FILES = ("--labels", "--split", "--classes")  # options that name a file
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


def data_words(report: Report, folder: str | None) -> list[str]:
    """Return what names the data of a report on the command line, and how it is read, from a folder.

    Args:
        report: with data.
        folder: told as the report tells paths; None: the folder that the run was started in.
    """
    built_in = report.data == BUILT_IN and report.judged_on is None
    words = ["--data", report.data if built_in else _from(report, report.data, folder)]
    for before, word in zip(("", *report.data_options), report.data_options, strict=False):
        words.append(_from(report, word, folder) if before in _FILES else word)
    return words


def _from(report: Report, path: str, folder: str | None) -> str:
    """Return a path as it leads from a folder; of an earlier version's report, which does not know that, as it is."""
    if folder is None or report.started_in is None or Path(path).is_absolute():
        return path
    start = Path(report.started_in)
    return os.path.relpath(start / path, start / folder)


def _go_there(report: Report) -> Iterator[str]:
    if report.started_in is not None:
        yield f"cd {shlex.quote(report.started_in)}"


def _validate(report: Report, row: StageRow, baseline: StageRow | None) -> str:
    words = [_PROGRAM, "validate", row.identity.artifact]
    gate = row.provenance.gate
    if baseline is not None:
        words += ["--baseline", baseline.identity.artifact]
    words += data_words(report, None)
    # what was made here tells itself how its images are made ready
    brought = [each for each in (baseline, row) if each is not None and each.identity.kind in (SOURCE, BASELINE)]
    if brought:
        words += _flags(_asked_of(report, brought))
    limits = [(flag, getattr(gate, name)) for name, flag in CHANGE_LIMITS.items()]
    asked = [word for flag, limit in limits if limit is not None for word in (flag, f"{limit:g}")]
    if baseline is not None and asked:
        words += [*asked, *(["--gate-on", gate.on] if gate.on != "point" else [])]
    return shlex.join(words)


def _asked_of(report: Report, brought: list[StageRow]) -> PreprocessSettings:
    """Return what was asked of what the user brought: in this run, or in the one that made the source of its FP32 ancestor."""
    asked: dict[str, Any] = {}
    for row in brought:
        if (own := row.provenance.preprocess) is not None:
            asked |= {name: getattr(own, name) for name, origin in own.origins.items() if origin == ASKED}
    return PreprocessSettings(**{**asked, **report.source_preprocess.asked()})


def _flags(said: PreprocessSettings) -> Iterator[str]:
    for name, value in said.asked().items():
        yield f"--{name.replace('_', '-')}"
        yield option_text(name, value)
