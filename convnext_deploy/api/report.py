"""`report`: read the report of a run, and write its views again."""

from pathlib import Path

from convnext_deploy.api.options import verb
from convnext_deploy.artifacts.places import check_run
from convnext_deploy.pipeline.ledger import write_report
from convnext_deploy.reports.record import Report, read_report


@verb
def report(run: Path | str) -> Report:
    """Read the report of a run and write its views again.

    Args:
        run: its folder, or its `report.json`, of which no views are written.

    Raises: ArtifactError: if there is no report, or it cannot be read.
    """
    check_run(Path(run))
    found = read_report(Path(run))
    if Path(run).is_dir():
        write_report(found, Path(run))
    return found
