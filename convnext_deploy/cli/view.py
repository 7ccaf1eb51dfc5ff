"""`convnext-deploy view`."""

from pathlib import Path

import click

from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.options import common_options
from convnext_deploy.cli.verbs import Verb


@click.command("view", cls=Verb)
@click.argument(
    "runs", type=click.Path(path_type=Path), default="runs", metavar="[RUN|DIR]", shell_complete=candidates.runs
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help="Port on 127.0.0.1 to listen at; 0: any.  [default: 8765, or the next that is free]",
)
@click.option("--no-browser", "browser", flag_value=False, default=True, type=bool, help="Open no browser.")
@common_options("view")
def command(runs: Path, port: int | None, browser: bool, as_json: bool) -> None:
    """Show runs in a browser: those below a folder, `runs` unless another is named, or a single one.

    A list with state, verdict and best artifact; live curves of what is training; comparisons; reports. The pages are
    served to this machine alone (127.0.0.1) until Ctrl-C. On another machine, forward the port:
    ssh -L 8765:127.0.0.1:8765 HOST
    """
    from convnext_deploy.api.view import usual_port_is_taken, view

    viewer = view(runs, port=port, browser=browser)
    if as_json:
        import json

        write(json.dumps(viewer.to_dict(), indent=1))
    else:
        moved = " (the usual port is in use)" if usual_port_is_taken(viewer, port) else ""
        say(f"{viewer.folder}: {viewer.url}{moved}; Ctrl-C ends it")
    viewer.wait()
