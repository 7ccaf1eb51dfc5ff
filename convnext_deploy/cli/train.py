"""`convnext-deploy train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.completions import artifacts, variants, weights
from convnext_deploy.cli.options import TRAINING, collect_options, common_options


@click.command("train")
@click.option(
    "--model",
    shell_complete=variants,
    help="Model to train, as 'convnext-deploy models' lists them; found from the weights if not given.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    shell_complete=artifacts,
    help="Fine-tune this artifact or weights file.",
)
@click.option(
    "--weights",
    metavar="NAME",
    shell_complete=weights,
    help="Fine-tune published weights, such as timm/convnext_tiny.fb_in1k.",
)
@common_options(*TRAINING)
def command(as_json: bool, **values: Any) -> None:
    """Train a ConvNeXt from scratch, or fine-tune one, and validate it. Without --data: on the built-in digits.

    A head for other classes than the data's starts fresh.
    """
    from convnext_deploy.api.train import train
    from convnext_deploy.cli.report_table import show_report

    arguments = {name: values.pop(name) for name in ("model", "checkpoint", "weights")}
    if arguments["checkpoint"] is not None and arguments["weights"] is not None:
        raise click.UsageError("--checkpoint and --weights were both given; start from one of them.")
    if not any(arguments.values()):
        raise click.UsageError("give --model, or what to start from with --checkpoint or --weights.")
    result = train(**arguments, options=collect_options(values))
    show_report(result.report, as_json)
