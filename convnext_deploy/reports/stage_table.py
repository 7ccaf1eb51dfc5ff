"""The columns of the stage table, as text: one place for console and Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from convnext_deploy.reports.record import Report, StageRow

COLUMNS = (
    "stage",
    "artifact",
    "top-1 %",
    "drop pp [95 %]",
    "vs source pp",
    "agree %",
    "size MB",
    "p50 ms",
    "time s",
    "verdict",
)
SPEEDUP = "speedup [95 %]"
"""The column after the latency, where anything was measured for it: how many times as fast as its float form INT8 is."""


def columns(rows: Sequence[StageRow]) -> tuple[str, ...]:
    """Return `COLUMNS`, and `SPEEDUP` where there is one."""
    if all(row.speed is None for row in rows):
        return COLUMNS
    place = COLUMNS.index("p50 ms") + 1
    return (*COLUMNS[:place], SPEEDUP, *COLUMNS[place:])


def cells(row: StageRow, titles: Sequence[str] = COLUMNS) -> tuple[str, ...]:
    """Return the texts of a row, in the order of the columns."""
    texts = dict(zip(COLUMNS, _texts(row), strict=True)) | {SPEEDUP: speedup_text(row)}
    return tuple(texts[title] for title in titles)


def _texts(row: StageRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.variant} {row.format} {row.precision}",
        "–" if row.top1 is None else f"{100 * row.top1:.2f}",
        drop_text(row),
        "–" if row.source_drop_pp is None else f"{row.source_drop_pp:+.2f}",
        "–" if row.agreement is None else f"{100 * row.agreement:.2f}",
        f"{row.size_bytes / 1e6:.1f}",
        "–" if row.latency_p50_ms is None else f"{row.latency_p50_ms:.2f}",
        f"{row.wall_s:.1f}",
        verdict(row),
    )


def drop_text(row: StageRow) -> str:
    """Return the drop with its interval, or why there is none."""
    if row.top1 is None:
        return "–"
    if row.top1_drop_pp is None or row.top1_drop_interval_pp is None:
        return "baseline"
    low, high = row.top1_drop_interval_pp
    return f"{row.top1_drop_pp:+.2f} [{low:+.2f}, {high:+.2f}]"


def speedup_text(row: StageRow) -> str:
    """Return the speedup with its interval, at the batch size that gains least."""
    if row.speed is None:
        return "–"
    worst = row.speed.worst
    size = "" if worst.batch_size == 1 else f" at {worst.batch_size}"
    return f"{worst.median:.2f}× [{worst.low:.2f}, {worst.high:.2f}]{size}"


def verdict(row: StageRow) -> str:
    """Return `passed`, `FAILED`, `no gate` or why the artifact was not run.

    `passed, unproven`: what was measured is within the gate, its whole 95 % interval is not.
    """
    if row.not_run is not None and row.passed is not False:
        return row.not_run
    if row.passed and row.proven is False:
        return "passed, unproven"
    return {True: "passed", False: "FAILED", None: "no gate"}[row.passed]


def summary(report: Report) -> str:
    """Return the closing line."""
    failed = [row.name for row in report.rows if row.passed is False]
    judged = sum(row.passed is not None for row in report.rows)
    if failed:
        return f"{len(failed)} of {judged} gates failed: {', '.join(failed)}"
    return f"{judged} of {judged} gates passed" if judged else "no gates were set"


def remarks(report: Report) -> list[str]:
    """Return the reasons of failed gates and the notes with their stages, and then how many first guesses changed.

    What is said of several stages is said once.
    """
    stages: dict[str, list[str]] = {}
    for row in report.rows:
        for text in (*row.reasons, *row.notes):
            stages.setdefault(text, []).append(row.name)
    found = [f"{', '.join(names)}: {text}" for text, names in stages.items()]
    changed = [f"{row.name} {_flips(row)}" for row in report.rows if row.flipped is not None]
    if changed:
        found.append(f"images whose first guess changed, of {report.validation_images:,}: {'; '.join(changed)}")
    return found


def _flips(row: StageRow) -> str:
    return f"{row.flipped:,} ({row.lost:,} lost, {row.gained:,} gained)" if row.flipped else "none"
