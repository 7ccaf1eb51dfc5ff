"""The columns of the stage table, as text: one place for console and Markdown."""

from collections.abc import Callable, Sequence
from typing import Literal

from convnext_deploy.artifacts.details import Selection, Step
from convnext_deploy.config.recipe import Gate
from convnext_deploy.reports.record import Accuracy, Report, StageRow, TestResult
from convnext_deploy.system.load import said_once, without_load

Outcome = Literal["failed", "warned", "passed", "plain"]
SCORE = "top-1 %"
"""The column of the score; what that is called depends on what was measured, see `columns`."""
COLUMNS = (
    "stage",
    "artifact",
    SCORE,
    "drop pp [95 %]",
    "vs source pp",
    "agree %",
    "size MB",
    "p50 ms",
    "time s",
    "verdict",
)
STEP_COLUMNS = ("step", SCORE, "drop pp [95 %]", "agree %", "KL", "SQNR dB", "risk pp", "s", "")
SPEEDUP = "speedup [95 %]"
"""The column after the latency, where anything was measured for it: how many times as fast as its float baseline INT8 is."""


def metric_name(rows: Sequence[StageRow]) -> str:
    """Return what the artifacts were scored by, see `evaluation.metric`: of several, all names."""
    return " or ".join(dict.fromkeys(row.accuracy.metric for row in rows if row.accuracy is not None)) or "top-1"


def columns(rows: Sequence[StageRow]) -> tuple[str, ...]:
    """Return `COLUMNS` with the name of the score, and `SPEEDUP` where there is one."""
    titles = tuple(f"{metric_name(rows)} %" if title == SCORE else title for title in COLUMNS)
    if all(row.speed.against_float is None for row in rows):
        return titles
    place = COLUMNS.index("p50 ms") + 1
    return (*titles[:place], SPEEDUP, *titles[place:])


def cells(row: StageRow, titles: Sequence[str] = COLUMNS) -> tuple[str, ...]:
    """Return the texts of a row, in the order of the columns."""
    texts = dict(zip(COLUMNS, _texts(row), strict=True)) | {SPEEDUP: speedup_text(row)}
    return tuple(texts.get(title, texts[SCORE]) for title in titles)


def _texts(row: StageRow) -> tuple[str, ...]:
    own, accuracy, latency = row.identity, row.accuracy, row.speed.latency
    change = None if accuracy is None else accuracy.change
    return (
        row.name,
        f"{own.variant} {own.format} {own.precision}",
        "–" if accuracy is None else f"{100 * accuracy.value:.2f}",
        drop_text(row),
        "–" if accuracy is None or accuracy.source_drop_pp is None else f"{accuracy.source_drop_pp:+.2f}",
        "–" if change is None else f"{100 * change.agreement:.2f}",
        f"{own.size_bytes / 1e6:.1f}",
        "–" if latency is None else f"{latency.p50_ms:.2f}",
        f"{row.history.wall_s:.1f}",
        verdict(row),
    )


def drop_text(row: StageRow) -> str:
    """Return the drop with its interval, or why there is none."""
    if row.accuracy is None:
        return "–"
    if row.accuracy.change is None:
        return "baseline"
    low, high = row.accuracy.change.interval_pp
    return f"{row.accuracy.change.drop_pp:+.2f} [{low:+.2f}, {high:+.2f}]"


def speedup_text(row: StageRow) -> str:
    """Return the speedup with its interval, at the batch size that gains least."""
    if row.speed.against_float is None:
        return "–"
    worst = row.speed.against_float.worst
    size = "" if worst.batch_size == 1 else f" at {worst.batch_size}"
    return f"{worst.median:.2f}× [{worst.low:.2f}, {worst.high:.2f}]{size}"


def verdict(row: StageRow) -> str:
    """Return `passed`, `FAILED`, `no gate` or why the artifact was not run.

    `passed, unproven`: what was measured is within the gate, its whole 95 % interval is not.
    """
    passed = row.verdict.passed
    if row.not_run is not None and passed is not False:
        return row.not_run
    if passed and row.verdict.proven is False:
        return "passed, unproven"
    return {True: "passed", False: "FAILED", None: "no gate"}[passed]


def describe_data(report: Report) -> str:
    """Return the recipe, the data and how many images validated: the title of a report."""
    return f"{report.recipe}: {data_of(report)}"


def data_of(report: Report) -> str:
    """Return the data and how many images validated."""
    if not report.validation_images:
        return "not validated, because no images were given"
    return f"{report.data}, {report.validation_images:,} validation images"


def judged_on(selection: Selection) -> str:
    """Say what judged the steps of a fallback sequence, and what it would take where that is too little to tell."""
    least, count = selection.images_needed, f"{selection.images:,}"
    if least is None or selection.images >= least:
        return f"on {count} training images set aside"
    drop = f"a drop of {selection.max_drop_pp:.2f} pp"
    return f"on {count} training images set aside, where it takes at least {least:,} to tell {drop}"


def step_columns(selection: Selection) -> tuple[str, ...]:
    """Return `STEP_COLUMNS`, with what is scored under its name."""
    return tuple(f"{selection.metric} %" if title == SCORE else title for title in STEP_COLUMNS)


def step_cells(step: Step, selection: Selection) -> tuple[str, ...]:
    """Return the texts of a step of a fallback sequence, in the order of `STEP_COLUMNS`."""
    low, high = step.interval_pp
    return (
        step.name,
        f"{100 * step.top1:.2f}",
        f"{step.top1_drop_pp:+.2f} [{low:+.2f}, {high:+.2f}]",
        f"{100 * step.agreement:.2f}",
        "–" if step.kl is None else f"{step.kl:.2g}",
        "–" if step.sqnr_db is None else f"{step.sqnr_db:.1f}",
        f"{'' if step.judged is None else '≥ '}{step.risk_pp:.2f}",
        f"{step.seconds:.1f}",
        _fate(step, selection),
    )


def _fate(step: Step, selection: Selection) -> str:
    """Return what became of a step: it passed, was selected all the same, or ended before all images had judged it."""
    if step.passed:
        return "passed"
    if step.name == selection.chosen:
        return "selected"
    return "" if step.judged is None else f"failed after {step.judged:,} images"


def summary(report: Report) -> str:
    """Return the closing line: how many gates failed or passed, and which passed unproven."""
    failed = [row.name for row in report.rows if row.verdict.passed is False]
    unproven = [row.name for row in report.rows if row.verdict.passed and row.verdict.proven is False]
    judged = sum(row.verdict.passed is not None for row in report.rows)
    left = [
        row.name for row in report.rows if row.verdict.passed is None and row.not_run and row.provenance.gate != Gate()
    ]
    not_judged = f"{len(left)} not judged, because not run: {', '.join(left)}" if left else ""
    if not judged:
        return not_judged or "no gates were set"
    text = (
        f"{len(failed)} of {judged} gates failed: {', '.join(failed)}"
        if failed
        else f"{judged} of {judged} gates passed"
    )
    if unproven:
        text += f"{';' if failed else ','} {len(unproven)} unproven: {', '.join(unproven)}"
    return f"{text}; {not_judged}" if not_judged else text


def outcome(report: Report) -> Outcome:
    """Return what colours the closing line: `warned` where a gate passed unproven, or a figure may mean nothing."""
    rows = report.rows
    if not report.passed:
        return "failed"
    if warnings(report) or any(row.verdict.passed and row.verdict.proven is False for row in rows):
        return "warned"
    return "passed" if any(row.verdict.passed for row in rows) else "plain"


def warnings(report: Report) -> list[str]:
    """Return the warnings with their stages; what is said of several stages is said once."""
    return [*report.leaks, *_said_once(report, lambda row: row.warnings)]


def remarks(report: Report) -> list[str]:
    """Return what was assumed, the reasons of failed gates and the notes with their stages, and how many first guesses changed.

    What is said of several stages is said once.
    """
    found = [f"assumed: {text}" for text in report.assumptions]
    found += _said_once(report, lambda row: (*row.verdict.reasons, *row.verdict.notes, *row.notes))
    changed = [f"{row.name} {flips}" for row in report.rows if (flips := _flips(row.accuracy))]
    if changed:
        found.append(f"images whose first guess changed, of {report.validation_images:,}: {'; '.join(changed)}")
    if report.test is not None:
        found.append(describe_test(report.test))
    return found


def describe_test(test: TestResult) -> str:
    """Say what the test images gave."""
    scored = "" if test.metric == "top-1" else f" {test.metric}"
    text = f"on the {test.total:,} test images, scored once at the end: {test.name}{scored} {100 * test.top1:.2f} %"
    change = test.change or (None if test.drop is None else test.drop.change)
    if test.baseline is None or test.baseline_top1 is None or change is None:
        return text
    low, high = change.interval_pp
    return (
        f"{text}, {test.baseline} {100 * test.baseline_top1:.2f} %, drop {change.drop_pp:+.2f} pp "
        f"[{low:+.2f}, {high:+.2f}]"
    )


def _said_once(report: Report, texts_of: Callable[[StageRow], Sequence[str]]) -> list[str]:
    said: dict[str, list[tuple[str, str]]] = {}
    for row in report.rows:
        for text in texts_of(row):
            said.setdefault(without_load(text), []).append((row.name, text))
    return [
        f"{', '.join(dict.fromkeys(name for name, _ in each))}: {said_once([text for _, text in each])}"
        for each in said.values()
    ]


def _flips(accuracy: Accuracy | None) -> str | None:
    if accuracy is None or accuracy.drop is None:
        return None
    lost, gained = accuracy.drop.lost, accuracy.drop.gained
    return f"{accuracy.flipped:,} ({lost:,} lost, {gained:,} gained)" if accuracy.flipped else "none"
