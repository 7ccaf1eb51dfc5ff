"""The table of calibration and the worst class, as text: one place for console, Markdown, page and model card."""

from collections.abc import Sequence

from convnext_deploy.reports.phrases import one_line
from convnext_deploy.reports.record import Accuracy, StageRow

TITLE = "Calibration and the worst class"
QUALITY_COLUMNS = ("stage", "ECE % [95 %]", "rise pp [95 %]", "worst class", "drop pp [95 %]", "images")


def quality_rows(rows: Sequence[StageRow]) -> list[tuple[str, ...]]:
    """Return the texts of every artifact of which anything is known, in the order of `QUALITY_COLUMNS`."""
    return [
        (row.name, *_calibration(row.accuracy), *_worst_class(row.accuracy))
        for row in rows
        if row.accuracy is not None and (row.accuracy.calibration is not None or row.accuracy.worst_class is not None)
    ]


def _calibration(accuracy: Accuracy) -> tuple[str, str]:
    found = accuracy.calibration
    if found is None:
        return "–", "–"
    low, high = found.interval
    ece = f"{100 * found.ece:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    if found.increase_pp is None or found.increase_interval_pp is None:
        return ece, "baseline"
    low, high = found.increase_interval_pp
    return ece, f"{found.increase_pp:+.2f} [{low:+.2f}, {high:+.2f}]"


def _worst_class(accuracy: Accuracy) -> tuple[str, str, str]:
    found = accuracy.worst_class
    if found is None:
        return "–", "–" if accuracy.drop is not None else "baseline", "–"
    names = {change.label: change.name for change in accuracy.classes}
    low, high = found.interval_pp
    return (
        one_line(names.get(found.label, str(found.label))) if found.drop_pp > 0 else "none loses",
        f"{found.drop_pp:+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{found.total:,} of {accuracy.total:,}",
    )
