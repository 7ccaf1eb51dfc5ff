"""`convnext-deploy run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convnext_deploy.cli.completions import recipes
from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.next_steps import tell_to_do
from convnext_deploy.cli.options import arguments_of, common_options, typed_command
from convnext_deploy.cli.verbs import Verb

if TYPE_CHECKING:
    from convnext_deploy.config.recipe import StageEntry


@click.command("run", cls=Verb)
@click.argument("recipe", type=click.Path(path_type=Path), shell_complete=recipes)
@click.option(
    "--dry-run", is_flag=True, help="Show which stages would run, run none, and find what would end one of them."
)
@common_options("run", "out")
def command(dry_run: bool, as_json: bool, **values: Any) -> None:
    """Run RECIPE (a TOML file): every stage in order, each artifact validated, what is up to date not repeated."""
    from convnext_deploy.api.run import plan_run, run
    from convnext_deploy.cli.report_table import show_report
    from convnext_deploy.system.distributed import launched

    arguments = arguments_of("run", values)
    if not dry_run:
        show_report(run(**arguments).report, as_json, values)
        return
    plan = plan_run(**arguments)
    if launched().is_first:
        _print_plan(plan, as_json)


def _print_plan(plan: list[tuple[StageEntry, bool]], as_json: bool) -> None:
    if as_json:
        stages = [
            {"name": stage.name, "kind": stage.config.kind, "inputs": dict(stage.inputs), "would_run": would_run}
            for stage, would_run in plan
        ]
        write(json.dumps({"stages": stages}, indent=1))
        return
    for stage, would_run in plan:
        inputs = ", ".join(stage.inputs.values()) or "the data"
        say(f"{stage.name}: {stage.config.kind} from {inputs}: {'would run' if would_run else 'up to date'}")
    tell_to_do(typed_command("--dry-run"))
