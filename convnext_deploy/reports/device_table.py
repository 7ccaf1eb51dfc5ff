"""The table of what was measured on devices, as text: one place for console, Markdown, page and model card."""

from collections.abc import Sequence

from convnext_deploy.reports.device_run import DeviceEngine, DeviceRun
from convnext_deploy.reports.phrases import one_line
from convnext_deploy.reports.record import Report, StageRow

DEVICES_TITLE = "On devices"
DEVICE_COLUMNS = (
    "engine",
    "stage",
    "precision",
    "MB",
    "batch",
    "p50 ms",
    "p90 ms",
    "W",
    "top-1 %",
    "drop pp [95 %]",
    "answers",
)
DEVICE_TEXTS = ("engine", "stage", "precision", "answers")


def row_of(engine: DeviceEngine, rows: Sequence[StageRow]) -> StageRow | None:
    """Return the row of the artifact that an engine was built from; None: it lies in another run."""
    return next((row for row in rows if engine.artifact is not None and row.identity.sha256 == engine.artifact), None)


def device_cells(run: DeviceRun, rows: Sequence[StageRow]) -> list[tuple[str, ...]]:
    """Return the texts of every engine of a device, in the order of `DEVICE_COLUMNS`."""
    return [_cells(engine, row_of(engine, rows)) for engine in run.engines]


def _cells(engine: DeviceEngine, row: StageRow | None) -> tuple[str, ...]:
    score, latency = engine.score, engine.latency if engine.built else None
    drop = "–"
    if score is not None and score.drop_pp is not None and score.drop_interval_pp is not None:
        drop = f"{score.drop_pp:+.2f} [{score.drop_interval_pp[0]:+.2f}, {score.drop_interval_pp[1]:+.2f}]"
    return (
        one_line(engine.model),
        "–" if row is None else row.name,
        one_line(engine.precision),
        "–" if engine.size_bytes is None or not engine.built else f"{engine.size_bytes / 1e6:.1f}",
        "–" if latency is None else str(latency.batch_size),
        "–" if latency is None else f"{latency.p50_ms:.3f}",
        "–" if latency is None else f"{latency.p90_ms:.3f}",
        "–" if engine.power_w is None or not engine.built else f"{engine.power_w:.1f}",
        "–" if score is None else f"{100 * score.top1:.2f}",
        drop,
        one_line(engine.answers),
    )


def describe_device(run: DeviceRun) -> str:
    """Say where and when it was measured, and what was chosen there."""
    when = run.measured[:16].replace("T", " ") + " UTC"  # which is how it is written, to the second
    return one_line(f"measured on {run.device.title}, {when}; chosen: {run.chosen} ({run.why})")


def obstacles(run: DeviceRun) -> list[str]:
    """Return why engines could not be chosen, a sentence each."""
    return [
        one_line(f"{each.model} cannot be chosen: {each.obstacle}") for each in run.engines if each.obstacle is not None
    ]


def collected(report: Report) -> list[DeviceRun]:
    """Return what was measured on devices of the artifacts that the report has now, the latest last."""
    found = [run for run in report.devices if any(row_of(engine, report.rows) is not None for engine in run.engines)]
    return sorted(found, key=lambda run: run.measured)
