"""Print a report on standard output: its table with remarks, or its JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console

from convnext_deploy.cli import EXIT_GATE_FAILED
from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.next_steps import conclude_run, conclude_validation, tell_to_do
from convnext_deploy.cli.options import typed_command
from convnext_deploy.cli.tables import create_console, print_table
from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.pipeline.run_result import RunResult, describe_plan
from convnext_deploy.reports.device_table import (
    DEVICE_COLUMNS,
    DEVICE_TEXTS,
    collected,
    describe_device,
    device_cells,
    obstacles,
)
from convnext_deploy.reports.front_table import (
    EXPLORED_COLUMNS,
    EXPLORED_TEXTS,
    EXPLORED_TITLE,
    FRONT_COLUMNS,
    FRONT_TEXTS,
    FRONT_TITLE,
    explored_cells,
    front_cells,
)
from convnext_deploy.reports.quality_table import QUALITY_COLUMNS, quality_rows
from convnext_deploy.reports.record import Report
from convnext_deploy.reports.stage_table import (
    SPEEDUP,
    Outcome,
    cells,
    columns,
    describe_data,
    outcome,
    remarks,
    summary,
    warnings,
)
from convnext_deploy.reports.to_ship import what_to_ship
from convnext_deploy.system.distributed import launched

_WORDS = ("stage", "artifact", "verdict")
_FIRST = ("top-1 %", "drop pp [95 %]", "verdict", "artifact", SPEEDUP, "p50 ms")  # where the terminal is narrow
_DEVICE_FIRST = ("p50 ms", "top-1 %", "drop pp [95 %]", "answers")
_STYLES: dict[Outcome, str | None] = {"failed": "bold red", "warned": "bold yellow", "passed": None, "plain": None}


def print_stages(report: Report, console: Console) -> None:
    """Print the title and the stage table, as wide as the terminal."""
    console.print(describe_data(report), style="bold")
    console.print()
    titles = columns(report.rows)
    rows = [cells(row, titles) for row in report.rows]
    styles = ["bold red" if row.verdict.passed is False else None for row in report.rows]
    print_table(console, titles, rows, left=_WORDS, styles=styles, first=_FIRST)
    console.print()


def show_result(result: RunResult, as_json: bool, values: Mapping[str, Any]) -> None:
    """Print the report of a run as `show_report`, or of a dry run the plan."""
    if not result.planned:
        show_report(result.report, as_json, values)
    elif launched().is_first:
        if as_json:
            write(json.dumps(result.to_dict(), indent=1))
            return
        print_front(result.report, create_console())
        print_plan(result.planned, as_json)


def print_devices(report: Report, console: Console) -> None:
    """Print what was measured on devices."""
    for run in collected(report):
        text = describe_device(run)
        console.print(f"{text[0].upper()}{text[1:]}", style="bold")
        print_table(console, DEVICE_COLUMNS, device_cells(run, report.rows), left=DEVICE_TEXTS, first=_DEVICE_FIRST)
        console.print()
        for text in obstacles(run):
            console.print(f"- {text}")


def print_front(report: Report, console: Console) -> None:
    """Print accuracy against latency, and what was explored before training."""
    front = report.front
    if front is None:
        return
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]], Sequence[str]]] = [
        (FRONT_TITLE, FRONT_COLUMNS, front_cells(front, report.rows), FRONT_TEXTS),
        (EXPLORED_TITLE, EXPLORED_COLUMNS, explored_cells(front.explored), EXPLORED_TEXTS),
    ]
    for title, columns_of, rows, texts in tables:
        if rows:
            console.print(title, style="bold")
            print_table(console, columns_of, rows, left=texts)
            console.print()


def show_report(
    report: Report, as_json: bool, values: Mapping[str, Any] | None = None, *, validated: bool = False
) -> None:
    """Print the table, or the JSON, and end with exit code 3 if a gate failed; of several processes the first one alone.

    Args:
        report: what to print.
        as_json: print the JSON alone.
        values: of the command, which the command that follows may need too.
        validated: whether it is of `validate`, and no run's.
    """
    if not launched().is_first:
        return
    if as_json:
        write(report.to_json())
    else:
        console = create_console()
        print_stages(report, console)
        if quality := quality_rows(report.rows):
            print_table(console, QUALITY_COLUMNS, quality, left=("stage", "worst class"))
            console.print()
        print_devices(report, console)
        print_front(report, console)
        for text in remarks(report):
            console.print(f"- {text}")
        for text in warnings(report):
            console.print(f"warning: {text}", style="bold yellow")
        console.print(summary(report), style=_STYLES[outcome(report)])
        if (ship := what_to_ship(report)) is not None:
            console.print(ship, style="bold")
        if validated:
            conclude_validation(report, values or {})
        else:
            conclude_run(report, values or {})
    if not report.passed:
        raise click.exceptions.Exit(EXIT_GATE_FAILED)


def print_plan(plan: Sequence[tuple[StageEntry, bool]], as_json: bool) -> None:
    """Print what would run, and the command that does it."""
    if as_json:
        write(json.dumps({"stages": describe_plan(plan)}, indent=1))
        return
    for stage, would_run in plan:
        inputs = ", ".join(stage.inputs.values()) or "the data"
        say(f"{stage.name}: {stage.config.kind} from {inputs}: {'would run' if would_run else 'up to date'}")
    tell_to_do(typed_command("--dry-run"))
