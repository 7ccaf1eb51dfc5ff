"""Fill the tables of Markdown files from `results/`: each stands between `<!-- results: NAME -->` and `<!-- end -->`.

`run_all.py` writes them anew; `NAME` is one of `TABLES`. A file may have some of them, each as often as it likes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compression_table
import distillation_table
import faults_table
import latency_table
import quantization_table
from markdown_cells import as_table, interval, power
from mutants_list import MUTANTS

RESULTS = Path(__file__).resolve().parent / "results"
_PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_LOADED = {
    "convnext_base.safetensors": "base from safetensors",
    "convnext_base.pth": "base from `torch.save`",
    "convnextv2_huge.safetensors": "v2 huge (660 million parameters) from safetensors",
    "convnextv2_huge.pth": "v2 huge from `torch.save`",
}


def fill(text: str, results: Path = RESULTS) -> str:
    """Return a Markdown text with the tables between its markers as the files in `results` give them.

    A table whose files are not there stays as it is.

    Raises: ValueError: if a marker names no table.
    """

    def replace(found: re.Match[str]) -> str:
        name = found[2]
        if name not in TABLES:
            raise ValueError(f"there is no table '{name}'; expected one of {', '.join(TABLES)}")
        try:
            table = TABLES[name](results)
        except FileNotFoundError:
            return found[0]
        return f"{found[1]}\n{table}\n\n{found[4]}"

    return _PLACE.sub(replace, text)


def names_in(text: str) -> list[str]:
    """Return which tables a text has markers for."""
    return [found[2] for found in _PLACE.finditer(text)]


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


def _all(results: Path, pattern: str) -> list[Any]:
    """Read all files of a kind. Raises: FileNotFoundError: if there is none."""
    found = sorted(results.glob(f"{pattern}.json"), key=lambda path: (len(path.stem), path.stem))
    if not found:
        raise FileNotFoundError(pattern)
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def _distillation(results: Path) -> str:
    found = _read(results, "distillation")
    table = as_table(distillation_table.HEAD, distillation_table.lines(found)).replace("|  |", "| |")
    return f"{table}\n\n{distillation_table.facts(found)}"


def _compression(results: Path) -> str:
    found = _read(results, "compression")
    return as_table(compression_table.COMPRESSION_HEAD, compression_table.compression_lines(found["rows"]))


def _width_times(results: Path) -> str:
    rows = _read(results, "width_times")["rows"]
    lines = [compression_table.width_lines(row["target"], row["errors"], row["timed"]) for row in rows]
    return as_table(compression_table.WIDTHS_HEAD, [line for each in lines for line in each])


def _training(results: Path) -> str:
    lines = []
    for found in _all(results, "training-*"):
        s = found["settings"]
        autocast = "float32" if s["autocast"] == "off" else s["autocast"]
        cells = [interval(peer["ratio"], *peer["interval"]) for peer in found["peers"].values()]
        lines.append([f"{s['model']}, {s['image_size']} pixels, batch {s['batch_size']}, {autocast}", *cells])
    return as_table(
        ["`python benchmarks/training.py …`", "timm's time over ours [95 %]", "timm in channels-last"], lines
    )


def _teacher_cache(results: Path) -> str:
    rows = _read(results, "teacher_cache")["rows"]
    words = {
        "plain": "without a teacher",
        "cached teacher": "with a filled cache",
        "teacher": "with the teacher itself",
    }
    head = [
        "an epoch `python benchmarks/teacher_cache.py --rounds 8 --images 512`",
        "images/s",
        "times plain training [95 %]",
    ]
    return as_table(
        head,
        [
            [words[name], f"{row['images_per_s']:.0f}", interval(row["ratio"], *row["interval"])]
            for name, row in rows.items()
        ],
    )


def _faults(results: Path) -> str:
    head = ["`python benchmarks/faults.py`", "times", "longest s", "what came of it"]
    return as_table(head, faults_table.rows(_read(results, "faults")["drills"]))


def _loading(results: Path) -> str:
    rows = {(row["file"], row["library"]): row for row in _read(results, "loading")["rows"]}
    lines = []
    for file, words in _LOADED.items():
        ours, timm = rows[file, "convnext_deploy"], rows[file, "timm"]
        times = [f"{row['seconds']:.2f} s" for row in (ours, timm)]
        lines.append([f"{words}: time", *times, f"{timm['seconds'] / ours['seconds']:.1f}"])
        lines.append(["most memory, in copies of the weights", f"{ours['copies']:.2f}", f"{timm['copies']:.2f}", ""])
    return as_table(["loading, beyond importing torch", "ours", "timm", "ratio"], lines).replace("|  |", "| |")


def _eager(results: Path) -> str:
    lines = []
    for found in _all(results, "eager*"):
        settings, rows = found["settings"], found["rows"]
        cells = [
            interval(*(rows[peer][key] for key in ("ratio", "ratio_low", "ratio_high"))) if peer in rows else "–"
            for peer in ("timm", "torchvision")
        ]
        lines.append([f"`--model {settings['model']} --batch-size {settings['batch_size']}`", *cells])
    return as_table(["`python benchmarks/eager.py …`", "timm's time over ours [95 %]", "torchvision's"], lines)


def _quantization(results: Path) -> str:
    return quantization_table.render_methods(_read(results, "quantization")["tables"])


def _quantization_peers(results: Path) -> str:
    return quantization_table.render_peers(_read(results, "quantization_peers")["rows"])


def _export(results: Path) -> str:
    rows = _read(results, "export")["rows"]
    files = [row["files"] for row in rows]
    engines = [(s, row["variant"]) for row in rows for file in row["files"].values() for s in file["engines"].values()]
    done, asked = (sum(row["int8_nodes"][index] for row in rows) for index in (0, 1))
    slowest, export_s = max(engines), max((row["onnx_s"], row["variant"]) for row in rows)
    lines = [
        ["variants exported, run and built", f"{len(rows)}"],
        [
            "largest error of FP32 against PyTorch, relative to the largest logit",
            power(max(f["fp32"]["error"] for f in files)),
        ],
        ["of FP16", power(max(f["fp16"]["error"] for f in files))],
        ["engines for SM75 (FP16), SM86, SM89, SM120", str(len(engines))],
        ["MatMul/Conv nodes that run in INT8, of those meant to", f"{done} of {asked}"],
        ["export to ONNX, the slowest", f"{export_s[0]:.0f} s ({export_s[1]})"],
        ["slowest engine with its precision report", f"{slowest[0]:.1f} s ({slowest[1]})"],
    ]
    return as_table(["every variant at 32 pixels: `python benchmarks/export.py`", ""], lines).replace("|  |", "| |")


def _startup(results: Path) -> str:
    rows = _read(results, "startup")["rows"]
    bounds = {name: "" if row["bound_s"] is None else f"{row['bound_s']:.1f}" for name, row in rows.items()}
    lines = [[f"`{name}`", f"{row['median_s']:.2f}", bounds[name]] for name, row in rows.items()]
    return as_table(["`python benchmarks/startup.py`", "seconds", "at most"], lines).replace("|  |", "| |")


def _evidence(results: Path) -> str:
    found = _read(results, "evidence")
    lines = []
    for rows, name in ((found["simulation"], "kind"), (found["networks"], "network")):
        for row in rows:
            classes = row.get("classes", 10)
            figures = [f"{row[key]:.2f}" for key in ("true_drop_pp", "expected_drop_pp", "bound_pp")]
            lines.append(
                [row[name], f"{classes:,}", f"{row['images']:,}", *figures, str(row["broken"]), str(row["before"])]
            )
    head = [
        "`python benchmarks/evidence.py`",
        "classes",
        "images",
        "true drop pp",
        "expected",
        "bound",
        f"broken, of {found['trials']}",
        "by version 0.2",
    ]
    return as_table(head, lines)


def _evidence_facts(results: Path) -> str:
    facts = {name: f"{100 * value:.1f} %" for name, value in _read(results, "evidence")["facts"].items()}
    return (
        f"The network gives the right class of {facts['top1_known']} of the images that it was trained on, with a mean confidence "
        f"of {facts['confidence_known']}, and of {facts['top1_new']} of new ones, with {facts['confidence_new']}."
    )


def _mutants(results: Path) -> str:
    found = _read(results, "mutants")
    trees = {
        label: f"{label} ({tree['commit']})" if tree["commit"] != label else label for label, tree in found.items()
    }
    lines = [
        [mutant.error, *(tree["mutants"].get(mutant.name, {}).get("status", "–") for tree in found.values())]
        for mutant in MUTANTS
    ]
    return as_table(["error put into the package: `python benchmarks/mutants.py`", *trees.values()], lines)


def _run(name: str) -> Callable[[Path], str]:
    def tables(results: Path) -> str:
        lines = (results / f"{name}.md").read_text(encoding="utf-8").splitlines()
        groups = itertools.groupby(lines, key=lambda line: line.startswith("|"))
        return "\n\n".join("\n".join(group) for is_table, group in groups if is_table)

    return tables


def _latency(results: Path) -> str:
    return latency_table.render_rows(_read(results, "latency")["rows"])


def _latency_claims(results: Path) -> str:
    return latency_table.render_claims(_read(results, "latency")["claims"])


def _latency_ablation(results: Path) -> str:
    return latency_table.render_ablation(_read(results, "latency-ablation")["rows"])


def _latency_floor(results: Path) -> str:
    return latency_table.render_floor(_read(results, "latency-floor")["rows"])


def _latency_profile(results: Path) -> str:
    return latency_table.render_profile(_read(results, "latency-profile")["rows"])


TABLES: dict[str, Callable[[Path], str]] = {
    "quickstart": _run("quickstart"),
    "cifar10": _run("cifar10"),
    "latency": _latency,
    "latency-claims": _latency_claims,
    "latency-ablation": _latency_ablation,
    "latency-floor": _latency_floor,
    "latency-profile": _latency_profile,
    "startup": _startup,
    "loading": _loading,
    "eager": _eager,
    "training": _training,
    "teacher_cache": _teacher_cache,
    "faults": _faults,
    "mutants": _mutants,
    "evidence": _evidence,
    "evidence-facts": _evidence_facts,
    "distillation": _distillation,
    "compression": _compression,
    "width_times": _width_times,
    "quantization": _quantization,
    "quantization_peers": _quantization_peers,
    "export": _export,
}
"""Name in a marker → what makes the table of a folder of results. Raises FileNotFoundError if its files are not there."""
