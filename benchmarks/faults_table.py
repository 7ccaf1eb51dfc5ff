"""The tables of `faults.py`: for a terminal, with all that was found, and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def outcomes(found: Mapping[str, Any]) -> str:
    """Return in a few words what came of a drill."""
    if found["not_run"] is not None:
        return f"not run: {found['not_run']}"
    came = [f"{count} {outcome}" for outcome, count in sorted(found["outcomes"].items(), key=lambda each: -each[1])]
    return ", ".join([f"{len(found['problems'])} NOT AS PROMISED"] * bool(found["problems"]) + came)


def render(records: Mapping[str, Any]) -> str:
    """Return the table for a terminal, and below each drill what was not as promised."""
    lines = [f"{'drill':20} {'times':>5} {'longest':>8} {'in all':>8}  what came of it"]
    for name, found in records.items():
        times = f"{found['times']:5} {found['longest_s']:6.0f} s {found['seconds']:6.0f} s"
        lines.append(f"{name:20} {times}  {outcomes(found)}")
        lines += [f"  {problem['what']}: {problem['problem']}" for problem in found["problems"]]
    return "\n".join(lines)


def rows(records: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table in Markdown: the drill, how often, the longest process, what came of it."""
    return [
        [found["words"], str(found["times"]), f"{found['longest_s']:.0f}", outcomes(found).replace("|", "/")]
        for found in records.values()
    ]
