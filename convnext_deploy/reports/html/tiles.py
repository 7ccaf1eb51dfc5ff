"""The tiles at the top of the page: what came of the run, in up to four figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convnext_deploy.reports.record import Accuracy, Report, StageRow, find_twin


@dataclass(frozen=True)
class Tile:
    """A figure with what it is and what to know of it."""

    title: str
    value: str
    note: str


def create_tiles(report: Report) -> list[Tile]:
    """Return the fastest artifact that failed no gate, the smallest of those, the best one, and the largest drop of INT8 or FP8.

    Fastest and smallest are among what was made to be used: not what the user brought, and not what PyTorch simulates, whose
    size and time are those of FP32. Of a run that made nothing else, its tiles tell what became of the layers. What was timed while
    the machine did other work is not called the fastest.
    """
    fine = [row for row in report.rows if row.verdict.passed is not False]
    made = [row for row in fine if row.is_made_to_be_used]
    scored = [(row, row.accuracy) for row in fine if row.accuracy is not None]
    return [
        *_fastest(made, fine),
        *_smallest(made, fine),
        *(_best(scored) if scored else ()),
        *_largest_drop(report),
        *(() if made else _layers(report)),
    ]


def _fastest(made: Sequence[StageRow], fine: Sequence[StageRow]) -> Iterator[Tile]:
    timed = [(row, latency) for row in made if (latency := row.speed.latency) is not None]
    free = [(row, latency.p50_ms) for row, latency in timed if latency.loaded is None]
    if free:
        fastest, ms = min(free, key=lambda pair: pair[1])
        yield Tile("Fastest that failed no gate", f"{ms:.2f} ms", f"{fastest.name}{_speedup(fastest, fine)}")
    elif timed:
        yield Tile("Fastest that failed no gate", "–", f"not known: {timed[0][1].loaded}")


def _smallest(made: Sequence[StageRow], fine: Sequence[StageRow]) -> Iterator[Tile]:
    if made:
        smallest = min(made, key=lambda row: row.identity.size_bytes)
        size = f"{smallest.identity.size_bytes / 1e6:.1f} MB"
        yield Tile("Smallest that failed no gate", size, f"{smallest.name}{_ratio(smallest, fine)}")


def _best(scored: Sequence[tuple[StageRow, Accuracy]]) -> Iterator[Tile]:
    best, accuracy = max(scored, key=lambda pair: pair[1].value)
    counted = "" if accuracy.correct is None else f"{accuracy.correct:,} of "
    images = " images" if accuracy.correct is None else ""
    note = f"{best.name}, {counted or 'on '}{accuracy.total:,}{images}"
    yield Tile(f"Best {accuracy.metric}", f"{100 * accuracy.value:.2f} %", note)


def _largest_drop(report: Report) -> Iterator[Tile]:
    drops = [
        (row, row.accuracy.change)
        for row in report.rows
        if row.accuracy and row.accuracy.change and row.identity.quantized_type
    ]
    if drops:
        worst, drop = max(drops, key=lambda pair: pair[1].drop_pp)
        low, high = drop.interval_pp
        note = f"{worst.name}, 95 % interval {low:+.2f} to {high:+.2f}"
        yield Tile(f"Largest drop of {worst.identity.quantized_type}", f"{drop.drop_pp:+.2f} pp", note)


def _layers(report: Report) -> Iterator[Tile]:
    """Yield how much of the last quantized network computes on 8 bits, and by which step."""
    row = next((row for row in report.rows[::-1] if row.history.layers), None)
    if row is None:
        return
    layers = row.history.layers
    inside = [layer for layer in layers if layer.choice != "float"]
    share = sum(layer.weights for layer in inside) / max(1, sum(layer.weights for layer in layers))
    yield Tile(
        f"Weights in {row.identity.quantized_type or 'INT8'}",
        f"{100 * share:.1f} %",
        f"{row.name}, {len(inside)} of {len(layers)} layers",
    )
    if (tried := row.history.selection) is not None:
        yield Tile("Method", tried.chosen, f"{row.name}, selected of {len(tried.steps)} tried")


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
