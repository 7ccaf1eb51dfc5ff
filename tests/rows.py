"""What tests read of the rows of a report."""

from __future__ import annotations

import json
from typing import Any

from convnext_deploy.metrics.paired import Drop
from convnext_deploy.reports.record import Accuracy, StageRow


def accuracy_of(row: StageRow) -> Accuracy:
    assert row.accuracy is not None, row.not_run
    return row.accuracy


def drop_of(row: StageRow) -> Drop:
    drop = accuracy_of(row).drop
    assert drop is not None
    return drop


def rows_in(text: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a report's JSON by their names."""
    return {row["identity"]["name"]: row for row in json.loads(text)["rows"]}
