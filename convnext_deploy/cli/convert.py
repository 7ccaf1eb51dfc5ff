"""`convnext-deploy convert`."""

from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.cli.completions import artifacts, variants
from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.options import arguments_of, common_options
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.choices import Dialect


@click.command("convert", cls=Verb)
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=artifacts)
@click.option(
    "--to", "dialect", type=click.Choice(get_args(Dialect)), required=True, help="Library that is to load the weights."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", required=True, help="New folder for weights and configs."
)
@click.option(
    "--model",
    shell_complete=variants,
    help="Model that CHECKPOINT must hold; found from its names and shapes if not given.",
)
@click.option(
    "--entry",
    metavar="NAME",
    help="Which network of CHECKPOINT, where it holds several; a note of every command names them.",
)
@common_options("convert")
def command(as_json: bool, **values: Any) -> None:
    """Write the FP32 weights of CHECKPOINT (an artifact, a file or a published name) as another library keeps them."""
    from convnext_deploy.api.convert import convert
    from convnext_deploy.cli.tables import create_console

    result = convert(**arguments_of("convert", values))
    if as_json:
        write(result.to_json())
        return
    say(f"{result.variant} for {result.dialect} in {result.path}: {', '.join(result.files)}")
    console = create_console()
    for note in result.notes:
        console.print(f"- {note}", soft_wrap=True)
    write(f"To load it, in that folder:\n\n{result.load}")
