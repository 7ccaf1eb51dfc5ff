"""Render the report as Markdown."""

from collections.abc import Sequence

from convnext_deploy.reports.device_table import (
    DEVICE_COLUMNS,
    DEVICES_TITLE,
    collected,
    describe_device,
    device_cells,
    obstacles,
)
from convnext_deploy.reports.escaping import clean, markdown
from convnext_deploy.reports.front_table import (
    EXPLORED_COLUMNS,
    EXPLORED_TITLE,
    FRONT_COLUMNS,
    FRONT_TITLE,
    explored_cells,
    front_cells,
)
from convnext_deploy.reports.label_table import LABEL_COLUMNS, LABELS_TITLE, describe_labels, label_cells, labelled_rows
from convnext_deploy.reports.phrases import explain
from convnext_deploy.reports.quality_table import QUALITY_COLUMNS, TITLE, quality_rows
from convnext_deploy.reports.record import Report
from convnext_deploy.reports.stage_table import (
    cells,
    columns,
    judged_on,
    remarks,
    step_cells,
    step_columns,
    summary,
    warnings,
)
from convnext_deploy.reports.to_ship import what_to_ship


def render_markdown(report: Report) -> str:
    """Return the text of `report.md`."""
    environment, titles = report.environment, columns(report.rows)
    versions = ", ".join(markdown(f"{name} {version}") for name, version in environment["versions"].items())
    lines = [
        f"# {markdown(report.recipe)}",
        "",
        f"{markdown(summary(report)[0].upper() + summary(report)[1:])}."
        if report.complete
        else "The run is not complete.",
        "",
        *(line for text in warnings(report) for line in (f"**Warning.** {markdown(text)}.", "")),
        f"{_data(report)}. Seed {report.seed}. "
        f"Machine: {markdown(str(environment['cpu']))}, {environment['cores']} cores.",
        "",
        *_table(titles, [cells(row, titles) for row in report.rows]),
        "",
        f"What the words mean: {explain(report)}",
    ]
    if quality := quality_rows(report.rows):
        lines += ["", f"{TITLE}:", "", *_table(QUALITY_COLUMNS, quality)]
    for row, found in labelled_rows(report):
        lines += ["", f"{LABELS_TITLE} of {markdown(row.name)}, {describe_labels(found)}:", ""]
        lines += _table(LABEL_COLUMNS, label_cells(found, report.class_names))
    for run in collected(report):
        lines += ["", f"{DEVICES_TITLE}, {markdown(describe_device(run))}:", ""]
        lines += [
            *_table(DEVICE_COLUMNS, device_cells(run, report.rows)),
            *(f"- {markdown(text)}." for text in obstacles(run)),
        ]
    lines += _front(report)
    for row in report.rows:
        if (tried := row.history.selection) is not None:
            lines += [
                "",
                f"What {markdown(row.name)} tried, {judged_on(tried)}:",
                "",
                *_table(step_columns(tried), [step_cells(step, tried) for step in tried.steps]),
                "",
                f"Selected {markdown(tried.chosen)}: {markdown(tried.reason)}.",
            ]
    if notes := remarks(report):
        lines += ["", *(f"- {markdown(text)}" for text in notes)]
    if any(row.accuracy and row.accuracy.flipped for row in report.rows):
        lines += [
            "",
            "`flips/STAGE.json` lists the images whose first guess changed, `report.json` the change of each class.",
        ]
    if (ship := what_to_ship(report)) is not None:
        lines += ["", f"**{markdown(ship[0].upper() + ship[1:])}.**"]
    lines += ["", f"Versions: {versions}.", ""]
    return clean("\n".join(lines))


def _front(report: Report) -> list[str]:
    front, lines = report.front, []
    if front is not None and front.points:
        lines += ["", f"{FRONT_TITLE}:", "", *_table(FRONT_COLUMNS, front_cells(front, report.rows))]
    if front is not None and front.explored:
        lines += ["", f"{EXPLORED_TITLE}:", "", *_table(EXPLORED_COLUMNS, explored_cells(front.explored))]
    return lines


def _data(report: Report) -> str:
    if not report.validation_images:
        return "Not validated, because no images were given"
    return f"Data: {markdown(report.data)}, {report.validation_images:,} validation images"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in (titles, *rows)]
    return [lines[0], "|" + "---|" * len(titles), *lines[1:]]
