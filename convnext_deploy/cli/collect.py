"""`convnext-deploy collect`."""

from pathlib import Path

import click

from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.next_steps import tell_where
from convnext_deploy.cli.options import common_options
from convnext_deploy.cli.verbs import Verb


@click.command("collect", cls=Verb)
@click.argument("run", type=click.Path(path_type=Path), shell_complete=candidates.runs)
@click.argument("measured", metavar="MEASURED.json", type=click.Path(path_type=Path))
@common_options("collect")
def command(run: Path, measured: Path, as_json: bool) -> None:
    """Bring MEASURED.json, which `build_on_device.sh --choose` of a bundle wrote on a device, into the report of RUN.

    Times, power, top-1 and the chosen engine then stand in report, plot and model card, marked as measured on that device.
    """
    from convnext_deploy.api.collect import collect
    from convnext_deploy.cli.report_table import print_devices
    from convnext_deploy.cli.tables import create_console
    from convnext_deploy.reports.record import read_report

    result = collect(run, measured)
    if as_json:
        write(result.to_json())
        return
    print_devices(read_report(run), create_console())
    if result.replaced:
        say("- what was collected before of the same bundle and device was replaced")
    tell_where("report", run / "report.html")
