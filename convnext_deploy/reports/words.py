"""Explain the words of a report: those that it uses, in one paragraph."""

from __future__ import annotations

from convnext_deploy.reports.record import Report

_ALWAYS = (
    "Top-1 is measured on each artifact by its own runner. Drops are against the baseline, the nearest FP32 PyTorch ancestor, with "
    "the 95 % interval of the paired predictions; «vs source» is against the first row. A positive drop is a loss. Agree: share of "
    "equal first guesses. Latency is the median of single images in one process."
)
_UNPROVEN = "Passed, unproven: what was measured is within the gate, its whole 95 % interval is not."
_SPEEDUP = (
    "Speedup: how many times as fast as its float baseline INT8 is on the runtime that it is for, in interleaved, isolated "
    "processes, with the 95 % interval."
)
_STEPS = (
    "Step: a method of quantization, the cheapest tried first, on training images set aside. Risk: the drop to be feared at 95 %, "
    "chance included. KL: divergence of the class probabilities from the float network's, in nats. SQNR: power of the float logits "
    "over that of their change."
)
_MORE = "The glossary of convnext_deploy, recipes/how-to/glossary.md, has all words."


def explain(report: Report) -> str:
    """Return what the words of the report's tables mean."""
    rows = report.rows
    texts = [_ALWAYS]
    if any(row.verdict.passed and row.verdict.proven is False for row in rows):
        texts.append(_UNPROVEN)
    if any(row.speed.against_float is not None for row in rows):
        texts.append(_SPEEDUP)
    if any(row.history.selection is not None for row in rows):
        texts.append(_STEPS)
    return " ".join([*texts, _MORE])
