"""`convnext-deploy compare`."""

from pathlib import Path

import click

from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.console import write
from convnext_deploy.cli.options import common_options, is_quiet
from convnext_deploy.cli.verbs import Verb


@click.command("compare", cls=Verb)
@click.argument(
    "runs",
    metavar="RUN RUN...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=candidates.runs,
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write a page with the table, the plot and the differences.",
)
@common_options("compare")
def command(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Compare the artifacts of several RUNs (folders of runs, or their report.json), and show what differs between them."""
    if len(runs) < 2:
        raise click.UsageError("give at least two runs.")
    from rich.table import Table

    from convnext_deploy.api.compare import compare
    from convnext_deploy.cli.tables import create_console
    from convnext_deploy.reports.html.comparison_page import comparison_cells, comparison_columns

    found = compare(runs, out=out)
    if as_json:
        write(found.to_json())
        return
    console = create_console()
    table = Table(padding=(0, 1))
    for column in comparison_columns(found):
        table.add_column(
            column, justify="left" if column in ("run", "stage", "artifact", "verdict") else "right", overflow="fold"
        )
    for texts, (_, row) in zip(comparison_cells(found), found.rows, strict=True):
        table.add_row(*texts, style="bold red" if row.verdict.passed is False else None)
    console.print(table)
    if found.differences:
        differing = Table("differs", *(run.name for run in found.runs), padding=(0, 1))
        for difference in found.differences:
            differing.add_row(difference.what, *difference.values)
        console.print(differing)
    for text in () if is_quiet() else found.notes:
        console.print(f"- {text}")
    for text in found.warnings:
        console.print(f"warning: {text}", style="bold yellow")
