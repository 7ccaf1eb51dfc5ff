"""Print a report on standard output: its table with remarks, or its JSON."""

import click
from rich.table import Table

from convnext_deploy.cli import EXIT_GATE_FAILED
from convnext_deploy.cli.console import write
from convnext_deploy.cli.tables import create_console, print_table
from convnext_deploy.reports.quality_table import QUALITY_COLUMNS, quality_rows
from convnext_deploy.reports.record import Report
from convnext_deploy.reports.stage_table import Outcome, cells, columns, outcome, remarks, summary, warnings
from convnext_deploy.system.distributed import launched

_NARROW = 150  # columns of a terminal, below which numbers are set closely and leave room for names
_STYLES: dict[Outcome, str | None] = {"failed": "bold red", "warned": "bold yellow", "passed": None, "plain": None}


def create_table(report: Report, width: int) -> Table:
    """Return the stage table for so many columns of a terminal. What does not fit is broken into lines, and nothing cut off."""
    narrow = width < _NARROW
    title = f"{report.recipe}: {report.data}, {report.validation_images} validation images"
    table = Table(title=title, padding=(0, 0 if narrow else 1))
    titles = columns(report.rows)
    for index, column in enumerate(titles):
        is_text = index in (0, 1, len(titles) - 1)
        words = " ".join((column, *(cells(row, titles)[index] for row in report.rows))).split()
        widest = max(map(len, words)) if narrow and not is_text else None
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", max_width=widest)
    for row in report.rows:
        style = "bold red" if row.verdict.passed is False else None
        table.add_row(*cells(row, titles), style=style)
    return table


def show_report(report: Report, as_json: bool) -> None:
    """Print the table, or the JSON, and end with exit code 3 if a gate failed; of several processes the first one alone."""
    if not launched().is_first:
        return
    if as_json:
        write(report.to_json())
    else:
        console = create_console()
        console.print(create_table(report, console.width))
        if quality := quality_rows(report.rows):
            print_table(console, QUALITY_COLUMNS, quality, left=("stage", "worst class"))
        for text in remarks(report):
            console.print(f"- {text}")
        for text in warnings(report):
            console.print(f"warning: {text}", style="bold yellow")
        console.print(summary(report), style=_STYLES[outcome(report)])
    if not report.passed:
        raise click.exceptions.Exit(EXIT_GATE_FAILED)
