"""The table of the labels of multi-label data, as text: one place for Markdown and the page."""

from collections.abc import Sequence

from convnext_deploy.metrics.multi_label import ClassFigures, MultiLabel
from convnext_deploy.reports.phrases import one_line
from convnext_deploy.reports.record import Report, StageRow

LABELS_TITLE = "Labels"
LABEL_COLUMNS = ("label", "images", "AP % [95 %]", "AUC [95 %]", "AP drop pp [95 %, all labels at once]")
_MOST_SHOWN = 40


def labelled_rows(report: Report) -> list[tuple[StageRow, MultiLabel]]:
    """Return the artifacts that were scored on multi-label data, each with its figures."""
    pairs = [(row, row.accuracy.multi_label) for row in report.rows if row.accuracy is not None]
    return [(row, found) for row, found in pairs if found is not None]


def describe_labels(found: MultiLabel) -> str:
    """Say the means over the labels."""
    low, high = found.map_interval
    text = f"mAP {100 * found.map:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
    if found.auc is not None and found.auc_interval is not None:
        text += f", mean AUC {found.auc:.4f} [{found.auc_interval[0]:.4f}, {found.auc_interval[1]:.4f}]"
    return text


def label_cells(found: MultiLabel, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the texts of the labels in the order of `LABEL_COLUMNS`: those that lose most first, or of a baseline, the worst."""
    ordered = sorted(found.classes, key=lambda each: (-(each.drop_pp or 0.0), each.ap if each.ap is not None else 2.0))
    return [_cells(each, names) for each in ordered[:_MOST_SHOWN]]


def left_out(found: MultiLabel) -> int:
    """Return how many labels `label_cells` does not show."""
    return max(0, len(found.classes) - _MOST_SHOWN)


def _cells(each: ClassFigures, names: Sequence[str]) -> tuple[str, ...]:
    return (
        one_line(names[each.label]) if each.label < len(names) else f"label {each.label}",
        f"{each.positives:,} of {each.known:,}",
        _figure(each.ap, each.ap_interval, 100, 2),
        _figure(each.auc, each.auc_interval, 1, 4),
        _figure(each.drop_pp, each.drop_interval_pp, 1, 2, "+"),
    )


def _figure(
    value: float | None, interval: tuple[float, float] | None, scale: float, digits: int, sign: str = ""
) -> str:
    if value is None or interval is None:
        return "–"
    low, high = (f"{scale * end:{sign}.{digits}f}" for end in interval)
    return f"{scale * value:{sign}.{digits}f} [{low}, {high}]"
