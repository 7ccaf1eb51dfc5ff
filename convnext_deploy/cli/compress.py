"""`convnext-deploy compress`."""

from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.cli.completions import artifacts
from convnext_deploy.cli.options import arguments_of, common_options, model_option
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.choices import Activation, Target


@click.command("compress", cls=Verb)
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=artifacts)
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    default="openvino",
    show_default=True,
    help="Runtime that it is for. Those of a processor are timed here; for TensorRT times are estimated, until collect has brought "
    "measured ones into the folder of the run.",
)
@click.option(
    "--latency-budget",
    multiple=True,
    required=True,
    metavar="0.6x|3ms",
    help="Time of one image: a share of what the dense network takes in the same form, or milliseconds. Given several times, each "
    "gets a network of its own.",
)
@click.option(
    "--activation",
    type=click.Choice(get_args(Activation)),
    help="Of the pruned network; relu is computed faster by some runtimes, and has to be learned.  [default: the checkpoint's]",
)
@click.option(
    "--teacher-checkpoint",
    type=click.Path(path_type=Path),
    multiple=True,
    shell_complete=artifacts,
    help="What the pruned network learns from in the place of the dense one: whatever teaches in distill. Given several times, all "
    "teach.",
)
@model_option("CHECKPOINT")
@common_options("compress", "out")
def command(as_json: bool, **values: Any) -> None:
    """Make a network from CHECKPOINT that keeps a latency, and measure what it cost.

    How long each width of each block takes is measured on this machine, once. Those widths are chosen that lose least under
    --latency-budget; the network is pruned to them, learns from the dense one (or from --teacher-checkpoint), and is quantized to
    INT8. It is timed beside the dense network's INT8 file, and must keep the drop of top-1 against CHECKPOINT within --max-drop.
    --dry-run shows the front that is predicted, and trains nothing.
    """
    from convnext_deploy.api.compress import compress
    from convnext_deploy.cli.report_table import show_result

    show_result(compress(**arguments_of("compress", values)), as_json, values)
