"""Render the report as Markdown."""

from __future__ import annotations

from convnext_deploy.reports.record import Report, StageRow
from convnext_deploy.reports.stage_table import cells, columns, remarks, summary
from convnext_deploy.reports.words import explain


def render_markdown(report: Report) -> str:
    """Return the text of `report.md`."""
    environment, titles = report.environment, columns(report.rows)
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        f"# {report.recipe}",
        "",
        f"{summary(report)[0].upper()}{summary(report)[1:]}." if report.complete else "The run is not complete.",
        "",
        f"Data: {report.data}, {report.validation_images} validation images. Seed {report.seed}. "
        f"Machine: {environment['cpu']}, {environment['cores']} cores.",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(text.replace("|", "\\|") for text in cells(row, titles)) + " |" for row in report.rows),
        "",
        f"What the words mean: {explain(report)}",
    ]
    for row in report.rows:
        if row.history.steps:
            lines += ["", *_steps(row)]
    if notes := remarks(report):
        lines += ["", *(f"- {text}" for text in notes)]
    if any(row.accuracy and row.accuracy.flipped for row in report.rows):
        lines += [
            "",
            "`flips/STAGE.json` lists the images whose first guess changed, `report.json` the change of each class.",
        ]
    lines += ["", f"Versions: {versions}.", ""]
    return "\n".join(lines)


def _steps(row: StageRow) -> list[str]:
    lines = [
        f"What {row.name} tried, on training images set aside:",
        "",
        "| step | top-1 % | drop pp [95 %] | agree % | KL | SQNR dB | risk pp | s | |",
        "|" + "---|" * 9,
    ]
    for step in row.history.steps:
        low, high = step.interval_pp
        kl, sqnr_db = step.kl, step.sqnr_db
        distance = f"{'–' if kl is None else f'{kl:.2g}'} | {'–' if sqnr_db is None else f'{sqnr_db:.1f}'}"
        mark = "passed" if step.passed else ""
        lines.append(
            f"| {step.name} | {100 * step.top1:.2f} | {step.top1_drop_pp:+.2f} [{low:+.2f}, {high:+.2f}] | "
            f"{100 * step.agreement:.2f} | {distance} | {step.risk_pp:.2f} | "
            f"{step.seconds:.1f} | {mark} |"
        )
    return [*lines, "", f"Selected {row.history.chosen}: {row.history.reason}."]
