"""`collect`: bring what was measured on a device into the report of a run."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.api.options import verb
from convnext_deploy.artifacts.places import check_run
from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline.ledger import write_report
from convnext_deploy.pipeline.run_folder import claim
from convnext_deploy.reports.device_run import DeviceRun, read_device_run
from convnext_deploy.reports.device_table import describe_device, row_of
from convnext_deploy.reports.record import read_report
from convnext_deploy.system.results import Result, plain


@dataclass(frozen=True, repr=False)
class Collected(Result):
    """What was measured; `stages` are the artifacts of the run that it was measured of, `replaced` whether an earlier file was."""

    run: Path
    found: DeviceRun
    stages: tuple[str, ...]
    replaced: bool

    def headline(self) -> str:
        """Say where it was measured, and what was chosen."""
        return describe_device(self.found)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each engine."""
        return [plain(engine) for engine in self.found.engines]

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps({**dataclasses.asdict(self), "run": str(self.run)}, indent=1)


@verb
def collect(run: Path | str, measured: Path | str) -> Collected:
    """Put times, power, top-1 and the chosen engine of a device into the report of a run, and write its views again.

    What an earlier `measured.json` of the same bundle and device says is replaced; other devices stand beside each other.

    Args:
        run: its folder, in which the artifacts of the bundle were made.
        measured: the file that `build_on_device.sh --choose` wrote.

    Raises: ArtifactError: if one of both cannot be read, or the bundle had no artifact of this run.
    """
    run, measured = Path(run), Path(measured)
    check_run(run)
    if not run.is_dir():
        raise ArtifactError(f"{run} is a file; give the folder of the run, whose report is written again.")
    found = read_device_run(measured)
    with claim(run):
        report = read_report(run)
        stages = [row.name for engine in found.engines if (row := row_of(engine, report.rows)) is not None]
        if not stages:
            raise ArtifactError(
                f"{measured} is of a bundle of {', '.join(engine.model for engine in found.engines) or 'nothing'}, and none of it "
                f"was made in {run}, or it was made again since; give the run that the bundle was made from."
            )
        kept = tuple(each for each in report.devices if (each.sha256, each.device) != (found.sha256, found.device))
        write_report(dataclasses.replace(report, devices=(*kept, found)), run)
    return Collected(run, found, tuple(stages), len(kept) < len(report.devices))
