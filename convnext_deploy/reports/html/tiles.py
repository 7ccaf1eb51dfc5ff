"""What a reader wants to know first of a run: what is fastest, what it costs, and what is most accurate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convnext_deploy.reports.record import Report, StageRow


@dataclass(frozen=True)
class Tile:
    """A figure with what it is and what to know of it."""

    title: str
    value: str
    note: str


def create_tiles(report: Report) -> list[Tile]:
    """Return the fastest artifact that failed no gate, the smallest of those, and the most accurate one."""
    scored = [row for row in report.rows if row.top1 is not None and row.passed is not False]
    timed = [row for row in scored if row.latency_p50_ms]
    tiles = []
    if timed:
        fastest = min(timed, key=lambda row: row.latency_p50_ms or 0.0)
        tiles.append(
            Tile(
                "Fastest that failed no gate",
                f"{fastest.latency_p50_ms:.2f} ms",
                f"{fastest.name}{_speedup(fastest, timed)}",
            )
        )
    if scored:
        # INT8 in PyTorch lies on disk in float
        smallest = min(scored, key=lambda row: row.size_bytes)
        tiles.append(
            Tile(
                "Smallest that failed no gate",
                f"{smallest.size_bytes / 1e6:.1f} MB",
                f"{smallest.name}{_ratio(smallest, scored)}",
            )
        )
        best = max(scored, key=lambda row: row.top1 or 0.0)
        tiles.append(
            Tile(
                "Best top-1",
                f"{100 * (best.top1 or 0.0):.2f} %",
                f"{best.name}, {best.correct or 0:,} of {best.total or 0:,}",
            )
        )
    drops = [row for row in report.rows if row.top1_drop_pp is not None and row.precision.startswith("int8")]
    if drops:
        worst = max(drops, key=lambda row: row.top1_drop_pp or 0.0)
        low, high = worst.top1_drop_interval_pp or (0.0, 0.0)
        tiles.append(
            Tile(
                "Largest drop of INT8",
                f"{worst.top1_drop_pp:+.2f} pp",
                f"{worst.name}, 95 % interval {low:+.2f} to {high:+.2f}",
            )
        )
    return tiles


def _twin(row: StageRow, others: Sequence[StageRow]) -> StageRow | None:
    """Return the FP32 form of the same network in the same format."""
    same = [o for o in others if (o.format, o.variant, o.runner) == (row.format, row.variant, row.runner)]
    return next((o for o in same if o.precision == "fp32" and o is not row), None)


def _speedup(row: StageRow, others: Sequence[StageRow]) -> str:
    if row.speed is not None:
        return f", {row.speed.worst.median:.2f}× as fast as {row.speed.compared_with}"
    twin = _twin(row, others)
    if twin is None or not twin.latency_p50_ms or not row.latency_p50_ms:
        return ""
    return f", {twin.latency_p50_ms / row.latency_p50_ms:.2f}× as fast as {twin.name}"


def _ratio(row: StageRow, others: Sequence[StageRow]) -> str:
    twin = _twin(row, others)
    return f", {row.size_bytes / twin.size_bytes:.2f}× the size of {twin.name}" if twin and twin.size_bytes else ""
