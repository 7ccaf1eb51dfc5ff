"""`convnext-deploy bundle`."""

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.next_steps import tell_next
from convnext_deploy.cli.options import arguments_of, artifacts_argument, common_options
from convnext_deploy.cli.values import POSITIVE
from convnext_deploy.cli.verbs import Verb


@click.command("bundle", cls=Verb)
@artifacts_argument
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR|FILE.zip", required=True, help="New folder, or .zip file."
)
@click.option("--zip", "as_zip", is_flag=True, help="Write DIR.zip instead of the folder DIR.")
@click.option(
    "--golden-images",
    type=POSITIVE,
    default=16,
    show_default=True,
    help="Images to keep with their answers: validation images of --data, or synthetic ones without it.",
)
@click.option(
    "--optimal-batch-size",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="Batch size that engines built on the device are tuned for.",
)
@click.option(
    "--max-batch-size",
    type=POSITIVE,
    default=8,
    show_default=True,
    help="Largest batch that these engines and Triton accept.",
)
@common_options("bundle")
def command(as_json: bool, **values: Any) -> None:
    """Put ARTIFACTs (ONNX and engines of one model) into one folder with all that a device needs to run and verify them.

    Build scripts for TensorRT 10 and 11, a Triton repository, golden images with their answers, checksums, a model card. The
    programs in it need nothing of this package.
    """
    from convnext_deploy.api.bundle import bundle
    from convnext_deploy.cli.tables import create_console

    result = bundle(**arguments_of("bundle", values))
    if as_json:
        write(result.to_json())
        return
    say(f"{result.path}: {result.size_bytes / 1e6:.1f} MB, golden answers to {result.golden}")
    for file in (*result.models, *result.engines):
        say(f"  {file}")
    console = create_console()
    for note in result.notes:
        console.print(f"- {note}", soft_wrap=True)
    console.print(f"SHA-256 of its checksums: {result.sha256}", soft_wrap=True)
    tell_next("verify-bundle", result.path)
