"""What a run returns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.reports.record import Report
from convnext_deploy.system.results import Result


@dataclass(frozen=True, repr=False)
class RunResult(Result):
    """The report, and the names of the stages that were executed and not taken from an earlier run.

    `planned`: of a dry run, whose report is empty: each stage, and whether it would run.
    """

    report: Report
    executed: tuple[str, ...]
    planned: tuple[tuple[StageEntry, bool], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return self.report.passed

    def headline(self) -> str:
        """Say what the report does, and how much was made anew."""
        if self.planned:
            return f"would run: {', '.join(stage.name for stage, runs in self.planned if runs) or 'nothing'}"
        return f"{self.report.headline()}; stages executed: {', '.join(self.executed) or 'none, all were up to date'}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each artifact, as `Report.to_rows`."""
        return self.report.to_rows()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as `report.json` has it, with `executed`; of a dry run the stages, and the front that is predicted."""
        if self.planned:
            front = self.report.front
            explored = {} if front is None else {"front": [asdict(point) for point in front.explored]}
            return {"stages": describe_plan(self.planned), **explored}
        return {**self.report.to_dict(), "executed": list(self.executed)}


def describe_plan(plan: Sequence[tuple[StageEntry, bool]]) -> list[dict[str, Any]]:
    """Return a record for each stage of a plan, with its settings."""
    return [
        {
            "name": stage.name,
            "kind": stage.config.kind,
            "inputs": dict(stage.inputs),
            "would_run": would_run,
            "settings": asdict(stage.config),
        }
        for stage, would_run in plan
    ]
