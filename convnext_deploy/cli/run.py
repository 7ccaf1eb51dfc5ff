"""`convnext-deploy run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.completions import recipes
from convnext_deploy.cli.options import collect_options, common_options


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path), shell_complete=recipes)
@click.option("--dry-run", is_flag=True, help="Say which stages would run, and do nothing.")
@common_options("data", "out", "speed_check", "device", "workers", "cache_dir", "tensorboard")
def command(recipe: Path, dry_run: bool, as_json: bool, **values: Any) -> None:
    """Run RECIPE (a TOML file): every stage in order, each artifact validated, what is up to date not repeated."""
    from convnext_deploy.api.run import run
    from convnext_deploy.cli.report_table import show_report
    from convnext_deploy.system.distributed import launched

    def show_plan(plan: list[Any]) -> None:
        if not launched().is_first:
            return
        if as_json:
            stages = [
                {"name": stage.name, "kind": stage.config.kind, "inputs": dict(stage.inputs), "would_run": would_run}
                for stage, would_run in plan
            ]
            click.echo(json.dumps({"stages": stages}, indent=1))
            return
        for stage, would_run in plan:
            inputs = ", ".join(stage.inputs.values()) or "the data"
            click.echo(f"{stage.name}: {stage.config.kind} from {inputs}: {'would run' if would_run else 'up to date'}")

    result = run(recipe, options=collect_options(values), on_plan=show_plan if dry_run else None)
    if result is not None:
        show_report(result.report, as_json)
