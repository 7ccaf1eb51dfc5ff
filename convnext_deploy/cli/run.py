"""`convnext-deploy run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.completions import recipes
from convnext_deploy.cli.options import arguments_of, common_options
from convnext_deploy.cli.verbs import Verb


@click.command("run", cls=Verb)
@click.argument("recipe", type=click.Path(path_type=Path), shell_complete=recipes)
@click.option(
    "--dry-run", is_flag=True, help="Show which stages would run, run none, and find what would end one of them."
)
@common_options("run", "out")
def command(dry_run: bool, as_json: bool, **values: Any) -> None:
    """Run RECIPE (a TOML file): every stage in order, each artifact validated, what is up to date not repeated."""
    from convnext_deploy.api.run import plan_run, run
    from convnext_deploy.cli.report_table import print_plan, show_report
    from convnext_deploy.system.distributed import launched

    arguments = arguments_of("run", values)
    if not dry_run:
        show_report(run(**arguments).report, as_json, values)
        return
    plan = plan_run(**arguments)
    if launched().is_first:
        print_plan(plan, as_json)
