"""`convnext-deploy report`."""

from pathlib import Path

import click

from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.options import common_options
from convnext_deploy.cli.verbs import Verb


@click.command("report", cls=Verb)
@click.argument("run", type=click.Path(path_type=Path), shell_complete=candidates.runs)
@common_options("report")
def command(run: Path, as_json: bool) -> None:
    """Show the report of RUN (a run's folder or its report.json) again, and write its Markdown, HTML and model card anew."""
    from convnext_deploy.api.report import report
    from convnext_deploy.cli.report_table import show_report

    show_report(report(run), as_json)
