"""What a run returns."""

from dataclasses import dataclass
from typing import Any

from convnext_deploy.reports.record import Report
from convnext_deploy.system.results import Result


@dataclass(frozen=True, repr=False)
class RunResult(Result):
    """The report, and the names of the stages that were executed and not taken from an earlier run."""

    report: Report
    executed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return self.report.passed

    def headline(self) -> str:
        """Say what the report does, and how much was made anew."""
        return f"{self.report.headline()}; stages executed: {', '.join(self.executed) or 'none, all were up to date'}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each artifact, as `Report.to_rows`."""
        return self.report.to_rows()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as `report.json` has it, with `executed`."""
        return {**self.report.to_dict(), "executed": list(self.executed)}
