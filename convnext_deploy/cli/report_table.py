"""Print a report on standard output: its table with remarks, or its JSON."""

from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from convnext_deploy.cli import EXIT_GATE_FAILED
from convnext_deploy.cli.console import write
from convnext_deploy.cli.next_steps import conclude_run, conclude_validation
from convnext_deploy.cli.tables import create_console, print_table
from convnext_deploy.reports.device_table import (
    DEVICE_COLUMNS,
    DEVICE_TEXTS,
    collected,
    describe_device,
    device_cells,
    obstacles,
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


def print_devices(report: Report, console: Console) -> None:
    """Print what was measured on devices."""
    for run in collected(report):
        text = describe_device(run)
        console.print(f"{text[0].upper()}{text[1:]}", style="bold")
        print_table(console, DEVICE_COLUMNS, device_cells(run, report.rows), left=DEVICE_TEXTS, first=_DEVICE_FIRST)
        console.print()
        for text in obstacles(run):
            console.print(f"- {text}")


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
        for text in remarks(report):
            console.print(f"- {text}")
        for text in warnings(report):
            console.print(f"warning: {text}", style="bold yellow")
        console.print(summary(report), style=_STYLES[outcome(report)])
        if validated:
            conclude_validation(report, values or {})
        else:
            conclude_run(report, values or {})
    if not report.passed:
        raise click.exceptions.Exit(EXIT_GATE_FAILED)
