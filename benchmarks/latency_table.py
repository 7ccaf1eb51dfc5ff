"""Ratios, claims and the table of `latency.py`, from the times of its rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from latency_candidates import FLOOR, KINDS, OURS, RELU, STATIC, WHOLE

from convnext_deploy.metrics.ratios import median_ratio

Row = dict[str, Any]
"""`model`, `batch_size`, `candidate`, `group`, `words`, `runner`, and `processes_ms`, one time a round, or why it was `not_run`."""

ORT_LIMIT, BEST_LIMIT = 0.85, 0.95


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, int, list[Row]]]:
    """Yield the rows of each network and batch size."""
    for model, size in dict.fromkeys((row["model"], row["batch_size"]) for row in rows):
        yield model, size, [row for row in rows if (row["model"], row["batch_size"]) == (model, size)]


def best(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> Row | None:
    """Return the row with the smallest median of those that were run and are wanted."""
    return min((row for row in rows if row["processes_ms"] and wanted(row)), key=_p50, default=None)


def add_ratios(rows: Sequence[Row]) -> None:
    """Give each row `p50_ms` and `ratio`: its time over that of the best of ours, median and 95 % interval over rounds."""
    for _, _, group in groups(rows):
        reference = best(group, lambda row: row["group"] == OURS)
        for row in group:
            row["p50_ms"] = _p50(row) if row["processes_ms"] else None
            run = reference is not None and row["processes_ms"]
            row["ratio"] = (
                list(median_ratio(row["processes_ms"], reference["processes_ms"])) if run and reference else None
            )


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what is promised and what was found, for each network and batch size that has rows for it."""
    found = []
    for model, size, group in groups(rows):
        for text, ours, theirs, limit in (
            (
                "ours on ONNX Runtime / best of quantize_static",
                best(group, lambda row: row["group"] == OURS and row["runner"] == "onnxruntime"),
                best(group, lambda row: row["group"] == STATIC),
                ORT_LIMIT,
            ),
            (
                "our best / best of all others",
                best(group, lambda row: row["group"] == OURS),
                best(group, lambda row: row["group"] != OURS),
                BEST_LIMIT,
            ),
        ):
            if ours is not None and theirs is not None:
                ratio = list(median_ratio(ours["processes_ms"], theirs["processes_ms"]))
                names = {"ours": ours["candidate"], "theirs": theirs["candidate"]}
                place = {"model": model, "batch_size": size, "claim": text}
                found.append({**place, **names, "ratio": ratio, "limit": limit, "holds": ratio[0] <= limit})
    return found


def render_rows(rows: Sequence[Row]) -> str:
    """Return a Markdown table: a line for each candidate, two columns for each network and batch size."""
    columns = [(model, size) for model, size, _ in groups(rows)]
    cells = {(row["candidate"], row["model"], row["batch_size"]): row for row in rows}
    head = [
        "| | runs on |",
        *(f" {model.removeprefix('convnext_')}, batch {size}: ms | × ours |" for model, size in columns),
    ]
    lines = ["".join(head), "|---|---|" + "---|---|" * len(columns)]
    for name in dict.fromkeys(row["candidate"] for row in rows):
        first = next(row for row in rows if row["candidate"] == name)
        line = f"| {first['group']}: {first['words']} | `{first['runner']}` |"
        lines.append(line + "".join(f" {_cell(cells.get((name, *column)))} |" for column in columns))
    return "\n".join(lines)


def render_claims(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the claims as a Markdown table."""
    lines = [
        "| claim | network | batch | ours | theirs | ratio [95 %] | promised | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for claim in found:
        cells = [claim["claim"], claim["model"], claim["batch_size"], f"`{claim['ours']}`", f"`{claim['theirs']}`"]
        cells += [_ratio(claim["ratio"]), f"≤ {claim['limit']}", "holds" if claim["holds"] else "does not hold"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def render_ablation(rows: Sequence[Row]) -> str:
    """Return a Markdown table: a line for each variation of a form, a column for each network and batch size."""
    columns = list(dict.fromkeys((row["model"], row["batch_size"]) for row in rows))
    cells = {(row["runner"], row["words"], row["model"], row["batch_size"]): row for row in rows}
    head = [f" {model.removeprefix('convnext_')}, batch {size} |" for model, size in columns]
    lines = ["| runs on | |" + "".join(head), "|---|---|" + "---|" * len(columns)]
    for runner, words in dict.fromkeys((row["runner"], row["words"]) for row in rows):
        found = [cells.get((runner, words, *column)) for column in columns]
        lines.append(f"| `{runner}` | {words} |" + "".join(f" {_variation(row)} |" for row in found))
    return "\n".join(lines)


def render_floor(rows: Sequence[Row]) -> str:
    """Return a Markdown table of an ablation: the times of our form and of its floor over that of the runtime's best peer."""
    shown = (WHOLE, RELU, FLOOR)
    peers = tuple(f"{kind.group}: {kind.words}" for kind in KINDS.values() if kind.group != OURS)
    lines = [
        f"| network | batch | runs on | best of others | ms | {' | '.join(shown)} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for place in dict.fromkeys((row["model"], row["batch_size"], row["runner"]) for row in rows):
        group = [row for row in rows if (row["model"], row["batch_size"], row["runner"]) == place]
        peer = best(group, lambda row: row["words"] in peers)
        if peer is None:
            continue
        own = {row["words"]: row["processes_ms"] for row in group}
        model, size, runner = place
        line = f"| {model} | {size} | `{runner}` | {peer['words']} | {_p50(peer):.1f} |"
        ratios = (median_ratio(own[w], peer["processes_ms"]) if own.get(w) else None for w in shown)
        lines.append(line + "".join(f" {_ratio(ratio)} |" if ratio else " – |" for ratio in ratios))
    return "\n".join(lines)


def render_profile(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the time in the kernels of our INT8 forms: milliseconds and share of each part."""
    parts = list(dict.fromkeys(part for row in rows for part in row["parts_ms"]))
    lines = [
        "| network | batch | runs on | all kernels ms | " + " | ".join(parts) + " |",
        "|" + "---|" * (4 + len(parts)),
    ]
    for row in rows:
        total = sum(row["parts_ms"].values())
        cells = [
            f"{row['parts_ms'][part]:.2f} ({100 * row['parts_ms'][part] / total:.0f} %)"
            if part in row["parts_ms"]
            else "–"
            for part in parts
        ]
        place = f"| {row['model']} | {row['batch_size']} | `{row['runner']}` | {total:.2f} | "
        lines.append(place + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe(candidate: str) -> dict[str, str]:
    """Return what a row says of its candidate."""
    kind = KINDS[candidate]
    return {"candidate": candidate, "group": kind.group, "words": kind.words, "runner": kind.runner}


def _p50(row: Row) -> float:
    return float(statistics.median(row["processes_ms"]))


def _variation(row: Row | None) -> str:
    if row is None or not row["processes_ms"]:
        return "–"
    return f"{_p50(row):.1f} ms" if row["words"] == WHOLE else f"× {_ratio(row['ratio'])}"


def _cell(row: Row | None) -> str:
    if row is None or row["p50_ms"] is None:
        return "– | –"
    return f"{row['p50_ms']:.1f} | {_ratio(row['ratio']) if row['ratio'] else '–'}"


def _ratio(ratio: Sequence[float]) -> str:
    median, low, high = ratio
    return f"{median:.2f} [{low:.2f}, {high:.2f}]"
