"""`report`: read the report of a run, and write its views again."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.pipeline.write_report import write_report
from convnext_deploy.reports.record import Report, read_report


def report(run: Path) -> Report:
    """Read the report of a run and write its views again."""
    found = read_report(Path(run))
    if Path(run).is_dir():
        write_report(found, Path(run))
    return found
