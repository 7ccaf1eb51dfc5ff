"""What the page of a report shows of devices: a table of each, and accuracy against the latency there."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.reports.device_run import DeviceEngine, DeviceLatency, DeviceRun
from convnext_deploy.reports.device_table import (
    DEVICE_COLUMNS,
    DEVICE_TEXTS,
    collected,
    describe_device,
    device_cells,
    obstacles,
    row_of,
)
from convnext_deploy.reports.html.accuracy_plot import Point, accuracy_plot
from convnext_deploy.reports.html.tables import create_table
from convnext_deploy.reports.record import Accuracy, Report


def devices(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the table of each device, and a plot where the latency of something that was scored is known."""
    for run in collected(report):
        points = [point for engine, latency in run.timed if (point := _point(report, engine, latency)) is not None]
        batches = {point.latency.batch_size for point in points}
        text = describe_device(run)
        yield {
            "title": run.device.title,
            "text": f"{text[0].upper()}{text[1:]}.",
            "obstacles": obstacles(run),
            "table": create_table(DEVICE_COLUMNS, DEVICE_TEXTS, device_cells(run, report.rows)),
            "plot": accuracy_plot(points, batch_size=min(batches)) if len(batches) == 1 else None,
            "caption": _caption(run, report),
        }


def _point(report: Report, engine: DeviceEngine, latency: DeviceLatency) -> Point | None:
    """Return an engine's place, as if its artifact had been timed there; None where its accuracy is not known."""
    row = row_of(engine, report.rows)
    if row is None or row.accuracy is None:
        return None
    here = Latency(latency.batch_size, latency.p50_ms, latency.p90_ms)
    accuracy = row.accuracy if engine.score is None else _scored(engine, row.accuracy)
    named = dataclasses.replace(row, speed=dataclasses.replace(row.speed, latency=here), accuracy=accuracy)
    return Point(named, accuracy, here, "")


def _scored(engine: DeviceEngine, accuracy: Accuracy) -> Accuracy:
    """Return the accuracy with the count of the device in its place."""
    assert engine.score is not None  # of the caller
    found = engine.score
    right = round(found.top1 * found.images)
    return dataclasses.replace(accuracy, correct=right, total=found.images, top1=found.top1, multi_label=None)


def _caption(run: DeviceRun, report: Report) -> str:
    scored = [engine.score.images for engine in run.engines if engine.score is not None]
    images = f"of {max(scored):,} images there" if scored else "as the artifacts that the engines are of have it here"
    return (
        f"{report.metric.title} {images}, with its 95 % interval, against the median time that the GPU computes on "
        f"{run.device.title}."
    )
