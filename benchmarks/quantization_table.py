"""Tables of what quantization costs, of ours and of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markdown_cells import as_table, interval, power

Row = Mapping[str, Any]

# other ways to choose a range, which are in the file
_LEFT_OUT = ("moving average", "percentile", "mse", "entropy")
_PEERS = {
    "ort-defaults": "ONNX Runtime `quantize_static`, defaults",
    "ort-s8s8-minmax": "… per channel, S8S8, MinMax",
    "ort-u8s8-minmax": "… per channel, U8S8, MinMax",
    "ort-u8s8-percentile": "… per channel, U8S8, Percentile",
    "nncf-onnx": "NNCF on ONNX",
    "nncf-onnx-transformer": "… `model_type=TRANSFORMER`",
    "nncf-onnx-control": "… with accuracy control",
    "nncf-openvino": "NNCF on OpenVINO",
    "nncf-openvino-transformer": "… `model_type=TRANSFORMER`",
    "nncf-openvino-control": "… with accuracy control",
    "modelopt-max": "Model Optimizer, max",
    "modelopt-entropy": "Model Optimizer, entropy",
    "nncf-openvino-fp8": "NNCF on OpenVINO, FP8",
    "nncf-openvino-fp8-transformer": "… `model_type=TRANSFORMER`",
    "modelopt-fp8": "Model Optimizer, FP8, max",
}
_OURS = {"-one-pass": "all that needs no training", "-min-max": "first step"}


def _scores(row: Row) -> list[str]:
    drop = interval(row["drop_pp"], *row["drop_interval_pp"], sign="+")
    cells = [f"{100 * row['top1']:.2f}", drop, f"{100 * row['agreement']:.2f}", power(row["kl"])]
    return [*cells, "∞" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"]


def render_methods(tables: Sequence[Row]) -> str:
    """Return a table for each network, of the steps of ours and of ways to choose a range."""
    parts = []
    head = ["target", "method", "top-1 %", "drop pp [95 %]", "agree %", "KL", "SQNR dB", "s"]
    for table in tables:
        lines = [
            [f"`{row['target']}`", row["method"].replace("minmax", "min-max"), *_scores(row), f"{row['seconds']:.1f}"]
            for row in table["rows"]
            if row["method"] not in _LEFT_OUT
        ]
        name = table["variant"].replace("convnextv2_", "v2-").removeprefix("convnext_")
        parts.append(f"`{name}`, FP32 {100 * table['top1']:.2f} %:\n\n{as_table(head, lines)}")
    return "\n\n".join(parts)


def render_peers(found: Sequence[Row]) -> str:
    """Return the table of what other tools make of the same network."""
    rows = {row["method"]: row for row in found if "drop_pp" in row}
    names = {name: words for name, words in _PEERS.items() if name in rows}
    for name in rows:
        target, suffix = next(((name.removesuffix(end), end) for end in _OURS if name.endswith(end)), ("", ""))
        if target.startswith("ours-"):
            names[name] = f"ours, `{target.removeprefix('ours-')}`, {_OURS[suffix]}"
    lines = [
        [words, *_scores(row), f"{row['seconds']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        for name, words in names.items()
        for row in [rows[name]]
    ]
    return as_table(["", "top-1 %", "drop pp [95 %]", "agree %", "KL", "SQNR dB", "s", "memory MB"], lines)
