"""`convnext-deploy compare`."""

from pathlib import Path

import click

from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.console import write
from convnext_deploy.cli.next_steps import tell_next, tell_where
from convnext_deploy.cli.options import common_options, is_quiet
from convnext_deploy.cli.verbs import Verb

_FIRST = ("stage", "top-1 %", "drop pp [95 %]", "verdict")  # where the terminal is narrow


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
    from convnext_deploy.api.compare import compare
    from convnext_deploy.cli.tables import create_console, print_table
    from convnext_deploy.reports.html.comparison_page import comparison_cells, comparison_columns

    found = compare(runs, out=out)
    if as_json:
        write(found.to_json())
        return
    console = create_console()
    styles = ["bold red" if row.verdict.passed is False else None for _, row in found.rows]
    words = ("run", "stage", "artifact", "verdict")
    titles, cells = comparison_columns(found), comparison_cells(found)
    print_table(console, titles, cells, words, styles=styles, first=_FIRST, names=("stage",))
    if found.differences:
        console.print()
        titles = ("differs", *(run.name for run in found.runs))
        print_table(console, titles, [(each.what, *each.values) for each in found.differences], titles)
    console.print()
    for text in () if is_quiet() else found.notes:
        console.print(f"- {text}")
    for text in found.warnings:
        console.print(f"warning: {text}", style="bold yellow")
    if out is None:
        tell_next("compare", *runs, "--out", "comparison.html")
    else:
        tell_where("page", out)
