"""The report as Markdown."""

from __future__ import annotations

from convnext_deploy.reports.record import Report, StageRow
from convnext_deploy.reports.stage_table import cells, columns, remarks, summary

SPEED_METHOD = (
    "Speedup: how many times as fast as its float baseline INT8 is on the runtime that it is for, in interleaved, isolated "
    "processes, with the 95 % interval."
)


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
        "Top-1 is measured on each artifact by its own runner. Drops are against the nearest FP32 PyTorch ancestor, with the "
        "95 % interval of the paired predictions; «vs source» is against the first row. A positive drop is a loss. "
        "Latency is the median of single images in one process.",
    ]
    if any(row.verdict.passed and row.verdict.proven is False for row in report.rows):
        lines[-1] += " Passed, unproven: what was measured is within the gate, its whole 95 % interval is not."
    if any(row.speed.against_float is not None for row in report.rows):
        lines[-1] += " " + SPEED_METHOD
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
        f"What {row.name} tried, on training images set aside (risk: the drop to be feared at 95 %, luck included):",
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
