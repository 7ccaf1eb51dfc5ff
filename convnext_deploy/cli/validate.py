"""`convnext-deploy validate`."""

from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.cli.completions import artifacts
from convnext_deploy.cli.options import arguments_of, common_options, model_option
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.choices import GateOn


@click.command("validate", cls=Verb)
@click.argument("artifact", type=click.Path(path_type=Path), shell_complete=artifacts)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    shell_complete=artifacts,
    help="Compare with this artifact, image by image.",
)
@model_option("ARTIFACT")
@click.option(
    "--gate-on",
    type=click.Choice(get_args(GateOn)),
    default="point",
    show_default=True,
    help="What must be within --max-drop: the drop measured, or the upper end of its 95 % interval.",
)
@common_options("validate", "out")
def command(as_json: bool, **values: Any) -> None:
    """Measure top-1 and top-5 of ARTIFACT (a folder, a weights file or an ONNX file) with its own runner."""
    from convnext_deploy.api.validate import validate
    from convnext_deploy.cli.report_table import show_report

    found = validate(**arguments_of("validate", values))
    show_report(found, as_json, values, validated=True)
