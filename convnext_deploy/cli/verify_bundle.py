"""`convnext-deploy verify-bundle`."""

from pathlib import Path
from typing import get_args

import click

from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.next_steps import tell_to_do
from convnext_deploy.cli.options import common_options
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.choices import BundledKind


@click.command("verify-bundle", cls=Verb)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--require",
    type=click.Choice(get_args(BundledKind)),
    multiple=True,
    help="Fail unless at least one of these could be run here; repeatable.",
)
@click.option(
    "--built",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the engines that were built from it.  [default: built/ in BUNDLE]",
)
@common_options("verify-bundle")
def command(bundle: Path, require: tuple[BundledKind, ...], built: Path | None, as_json: bool) -> None:
    """Check the files of BUNDLE (a folder or a .zip), run what this machine can run, compare with the golden answers.

    Its own verify.py does the same where this package is not installed. Ends with 1 if anything disagrees.
    """
    from convnext_deploy.api.verify_bundle import verify_bundle
    from convnext_deploy.cli import EXIT_ERROR
    from convnext_deploy.cli.tables import create_console

    result = verify_bundle(bundle, require=require, built=built)
    if as_json:
        write(result.to_json())
    else:
        console = create_console()
        for check in result.checks:
            console.print(f"{check.status:8} {check.what}: {check.detail}", soft_wrap=True)
        for kind in result.unmet:
            say(f"failed   no {kind} could be run here, and one was required")
        if result.passed:
            tell_to_do(f"copy {bundle} to the device; README.md in it says how to build, serve and verify it there")
    if not result.passed:
        raise click.exceptions.Exit(EXIT_ERROR)
