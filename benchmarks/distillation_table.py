"""The table of `distillation.py`, of the cells that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

HEAD = ("the student", "seed 0", "seed 1", "seed 2", "mean", "over alone pp [95 %]")
_WORDS = {
    "alone": "alone, on the labels",
    "foreign": "taught by the residual network",
    "foreign-standardized": "… with logit standardization",
    "foreign-dist": "… by DIST",
    "foreign-vanilla": "… at temperature 1 with equal weights",
    "foreign-fifth": "… with a fifth of the labels, all other images unlabelled",
    "own": "taught by the ConvNeXt",
    "own-standardized": "… with logit standardization",
    "alone-longer": "twice as long: alone",
    "foreign-longer": "twice as long: taught by the residual network",
    "own-longer": "twice as long: taught by the ConvNeXt",
}

_SEEDS = (0, 1, 2)


def lines(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table, top-1 in percent; `–` is not measured yet."""
    top1 = _top1(found)
    table = []
    for name, words in _WORDS.items():
        own = [top1.get((name, seed)) for seed in _SEEDS]
        known = [value for value in own if value is not None]
        alone = "alone-longer" if name.endswith("-longer") else "alone"
        gains = _gains(top1, name, alone)
        mean = f"{np.mean(known):.2f}" if known else "–"
        shown = ["–" if value is None else f"{value:.2f}" for value in own]
        table.append([words, *shown, mean, "" if name == alone else _gain(gains)])
    return table


def _top1(found: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """Return top-1 in percent by row and seed."""
    return {(cell["row"], cell["seed"]): 100 * cell["top1"] for cell in found["cells"]}


def _gains(top1: Mapping[tuple[str, int], float], name: str, over: str) -> list[float]:
    """Return by how much a row is better than another one, of each seed that both have."""
    return [top1[name, seed] - top1[over, seed] for seed in _SEEDS if {(name, seed), (over, seed)} <= {*top1}]


def _gain(gains: Sequence[float]) -> str:
    """Return the mean of gains seed by seed with its 95 % interval after Student's t; of a single seed without one."""
    if not gains:
        return "–"
    mean = f"{np.mean(gains):+.2f}"
    if len(gains) == 1:
        return f"{mean} (one seed)"
    reach = stats.t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / np.sqrt(len(gains))
    return f"{mean} [{np.mean(gains) - reach:+.2f}, {np.mean(gains) + reach:+.2f}]"


def facts(found: Mapping[str, Any]) -> str:
    """Say in a sentence how much is measured, and how good the teachers are."""
    called = {"foreign": "the residual network", "own": "the ConvNeXt"}
    teachers = [f"{called[name]} has {100 * teacher['top1']:.2f} %" for name, teacher in found["teachers"].items()]
    said = " and ".join(teachers) or "no teacher is trained yet"
    top1 = _top1(found)
    pairs = {
        "taught by the residual network over taught by the ConvNeXt": ("foreign", "own"),
        "… in twice as many epochs": ("foreign-longer", "own-longer"),
        "temperature 4 and nine tenths over temperature 1 and equal weights": ("foreign", "foreign-vanilla"),
        "a fifth of the labels over all of them": ("foreign-fifth", "foreign"),
    }
    compared = [f"{words}: {_gain(gains)} pp" for words, pair in pairs.items() if (gains := _gains(top1, *pair))]
    return (
        "; ".join([f"{len(found['cells'])} of {len(_WORDS) * len(_SEEDS)} cells are measured", said, *compared]) + "."
    )


def render(found: Mapping[str, Any]) -> str:
    """Return the table for a terminal."""
    table = [list(HEAD), *lines(found)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*rows, facts(found)])
