"""What `quantization_peers.py` measures of a quantized model: logits, how far they are from those of the float one, and a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy.special import log_softmax

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.evaluation.gate import measure_drop
from convnext_deploy.evaluation.score import Score

COLUMNS = ("method", "top-1 %", "drop pp [95 %]", "agreement %", "KL", "SQNR dB", "time s", "memory MB", "file MB")


def onnx_logits(
    model: Path,
    images: NDArray[np.float32],
    batch_size: int,
    threads: int | None,
    adapt: Callable[[NDArray[np.float32]], NDArray[np.float32]] = np.ascontiguousarray,
) -> NDArray[np.float32]:
    """Run images `(N, C, S, S)` through an ONNX file on ONNX Runtime's CPU provider, with its default optimizations.

    `adapt` makes of a batch what this file takes.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    source, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    starts = range(0, len(images), batch_size)
    return np.concatenate(
        [session.run([output], {source: adapt(images[start : start + batch_size])})[0] for start in starts]
    )


def taken_by(artifact: Artifact, source: Preprocess) -> Preprocess:
    """Return what a file takes. Nothing says it of a foreign file: that takes what the network takes of which it was made."""
    return source if artifact.model.variant == "unknown" else artifact.preprocess


def renormalize(images: NDArray[np.float32], source: Preprocess, target: Preprocess) -> NDArray[np.float32]:
    """Return images `(N, C, S, S)` normalized as `source` says as they are when normalized as `target` says."""
    if (source.mean, source.std) == (target.mean, target.std):
        return np.ascontiguousarray(images)  # without the rounding of going there and back
    first, second = (
        [np.array(values, np.float64).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std)]
        for preprocess in (source, target)
    )
    pixels = images * first[1] + first[0]
    return np.ascontiguousarray((pixels - second[0]) / second[1], np.float32)


def compare_logits(
    quantized: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Return the measures of `(N, classes)` logits against those of the float model.

    `kl` is the mean over images of KL(softmax(reference) ‖ softmax(quantized)) in nats, `sqnr_db` the ratio of the reference's
    energy to that of the difference, both over all logits; None where there is no difference.
    """
    if not np.isfinite(quantized).all():
        return {"failure": "its logits are not finite"}
    drop = measure_drop(_score(quantized, labels), _score(reference, labels))
    before, after = log_softmax(reference.astype(np.float64), axis=1), log_softmax(quantized.astype(np.float64), axis=1)
    noise = float(np.square(reference.astype(np.float64) - quantized).sum())
    return {
        "top1": float((quantized.argmax(axis=1) == labels).mean()),
        "drop_pp": drop.top1_drop_pp,
        "drop_interval_pp": list(drop.interval_pp),
        "agreement": drop.agreement,
        "kl": float((np.exp(before) * (before - after)).sum(axis=1).mean()),
        "sqnr_db": 10.0 * float(np.log10(np.square(reference.astype(np.float64)).sum() / noise)) if noise else None,
    }


def _score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Score:
    guesses = logits.argmax(axis=1)
    top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return Score(
        correct=int((guesses == labels).sum()),
        correct_top5=int((top5 == labels[:, None]).any(axis=1).sum()),
        predictions=tuple(guesses.tolist()),
        labels=tuple(labels.tolist()),
    )


def render_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table. A row with a `failure` has it in its second column."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *(_render_row(row) for row in rows)])


def _render_row(row: Mapping[str, Any]) -> str:
    if row.get("failure"):
        return f"| {row['method']} | {row['failure']} |" + " |" * (len(COLUMNS) - 2)
    cells = [row["method"]]
    if "top1" not in row:
        cells += ["–"] * 5
    elif "drop_pp" not in row:
        cells += [f"{100 * row['top1']:.2f}", *["–"] * 4]
    else:
        low, high = row["drop_interval_pp"]
        cells += [f"{100 * row['top1']:.2f}", f"{row['drop_pp']:+.2f} [{low:+.2f}, {high:+.2f}]"]
        cells += [f"{100 * row['agreement']:.2f}", f"{row['kl']:.2g}"]
        cells += ["∞" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"]
    calibrate = f" ({row['calibrate_s']:.1f})" if "calibrate_s" in row else ""
    cells += [_number(row.get("seconds"), 1) + calibrate, _number(row.get("peak_bytes"), 0, 1e6)]
    return "| " + " | ".join([*cells, _number(row.get("file_bytes"), 1, 1e6)]) + " |"


def _number(value: float | None, places: int, unit: float = 1.0) -> str:
    return "–" if value is None else f"{value / unit:.{places}f}"
