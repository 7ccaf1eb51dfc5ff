"""What `compression.py` and `width_times.py` have measured, as lines of Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markdown_cells import interval

FASTEST = "none kept, the fastest"
"""In the place of a budget that no network of a peer keeps."""
DENSE, OURS, PRUNED, SCALED = "dense", "ours", "torch-pruning", "scaled"
_WORDS = {
    DENSE: "our INT8 of the dense network",
    OURS: "`compress`",
    PRUNED: "Torch-Pruning and NNCF",
    SCALED: "all channels scaled alike, and NNCF",
}
COMPRESSION_HEAD = ("target", "budget", "by", "time of the dense INT8 file [95 %]", "top-1 %", "drop pp [95 %]")
WIDTHS_HEAD = ("target", "model", "networks timed", "median error", "90th percentile", "largest")


def compression_lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return a line for each network of `compression.py`, as `COMPRESSION_HEAD`."""
    return [
        [
            row["target"],
            row["budget"],
            _WORDS[row["way"]],
            interval(*row["ratio"]),
            f"{100 * row['top1']:.2f}",
            interval(row["drop_pp"], *row["drop_interval_pp"], sign="+"),
        ]
        for row in rows
    ]


def width_lines(target: str, errors: Mapping[str, Sequence[float]], timed: Mapping[str, int]) -> list[list[str]]:
    """Return a line for each model of times, as `WIDTHS_HEAD`; `timed`: how many networks it was fitted to, one if not named."""
    lines = []
    for name, each in errors.items():
        size = np.abs(each)
        found = [np.median(size), np.percentile(size, 90), size.max()]
        lines.append([target, name, str(timed.get(name, 1)), *(f"{value:.1%}" for value in found)])
    return lines
