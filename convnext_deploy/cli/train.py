"""`convnext-deploy train`."""

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.completions import artifacts, variants, weights
from convnext_deploy.cli.options import arguments_of, common_options
from convnext_deploy.cli.verbs import Verb


@click.command("train", cls=Verb)
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
@common_options("train", "out")
def command(as_json: bool, **values: Any) -> None:
    """Train a ConvNeXt from scratch, or fine-tune one, and validate it. Without --data: on the built-in digits.

    A head for other classes than the data's starts fresh.
    """
    from convnext_deploy.api.train import train
    from convnext_deploy.cli.report_table import show_result

    if values["checkpoint"] is not None and values["weights"] is not None:
        raise click.UsageError("--checkpoint and --weights were both given; start from one of them.")
    if not any(values[name] for name in ("model", "checkpoint", "weights")):
        raise click.UsageError("give --model, or what to start from with --checkpoint or --weights.")
    show_result(train(**arguments_of("train", values)), as_json, values)
