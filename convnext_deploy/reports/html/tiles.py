"""The tiles at the top of the page: the fastest, the smallest and the most accurate artifact, and the largest drop of INT8."""

from collections.abc import Sequence
from dataclasses import dataclass

from convnext_deploy.reports.record import Accuracy, Report, StageRow, find_twin


@dataclass(frozen=True)
class Tile:
    """A figure with what it is and what to know of it."""

    title: str
    value: str
    note: str


def create_tiles(report: Report) -> list[Tile]:
    """Return the fastest artifact that failed no gate, the smallest of those, and the most accurate one.

    What was timed while the machine did other work is not called the fastest.
    """
    fine = [row for row in report.rows if row.verdict.passed is not False]
    scored = [(row, row.accuracy) for row in fine if row.accuracy is not None]
    timed = [(row, row.speed.latency) for row in fine if row.speed.latency is not None]
    free = [(row, latency.p50_ms) for row, latency in timed if latency.loaded is None]
    tiles = []
    if free:
        fastest, ms = min(free, key=lambda pair: pair[1])
        tiles.append(Tile("Fastest that failed no gate", f"{ms:.2f} ms", f"{fastest.name}{_speedup(fastest, fine)}"))
    elif timed:
        tiles.append(Tile("Fastest that failed no gate", "–", f"not known: {timed[0][1].loaded}"))
    if scored:
        # INT8 in PyTorch lies on disk in float
        smallest = min((row for row, _ in scored), key=lambda row: row.identity.size_bytes)
        tiles.append(
            Tile(
                "Smallest that failed no gate",
                f"{smallest.identity.size_bytes / 1e6:.1f} MB",
                f"{smallest.name}{_ratio(smallest, fine)}",
            )
        )
        best, accuracy = max(scored, key=lambda pair: pair[1].value)
        tiles.append(
            Tile(f"Best {accuracy.metric}", f"{100 * accuracy.value:.2f} %", f"{best.name}, {_counted(accuracy)}")
        )
    drops = [
        (row, row.accuracy.change)
        for row in report.rows
        if row.accuracy and row.accuracy.change and row.identity.is_int8
    ]
    if drops:
        worst, drop = max(drops, key=lambda pair: pair[1].drop_pp)
        low, high = drop.interval_pp
        tiles.append(
            Tile(
                "Largest drop of INT8",
                f"{drop.drop_pp:+.2f} pp",
                f"{worst.name}, 95 % interval {low:+.2f} to {high:+.2f}",
            )
        )
    return tiles


def _counted(accuracy: Accuracy) -> str:
    total = f"{accuracy.total:,}"
    return f"on {total} images" if accuracy.correct is None else f"{accuracy.correct:,} of {total}"


def _speedup(row: StageRow, others: Sequence[StageRow]) -> str:
    if (speed := row.speed.against_float) is not None and speed.loaded is None:
        return f", {speed.worst.median:.2f}× as fast as {speed.compared_with}"
    twin = find_twin(row, others)
    if twin is None or twin.speed.latency is None or row.speed.latency is None or twin.speed.latency.loaded is not None:
        return ""
    return f", {twin.speed.latency.p50_ms / row.speed.latency.p50_ms:.2f}× as fast as {twin.name}"


def _ratio(row: StageRow, others: Sequence[StageRow]) -> str:
    twin = find_twin(row, others)
    return (
        "" if twin is None else f", {row.identity.size_bytes / twin.identity.size_bytes:.2f}× the size of {twin.name}"
    )
