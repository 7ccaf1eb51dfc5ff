"""`convnext-deploy inspect`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convnext_deploy.cli.console import write
from convnext_deploy.cli.next_steps import tell_next, tell_to_do
from convnext_deploy.cli.options import common_options
from convnext_deploy.cli.verbs import Verb

if TYPE_CHECKING:
    from rich.console import Console

    from convnext_deploy.graphs.engine_plan import EngineRecord
    from convnext_deploy.graphs.lint.onnx_summary import GridRecord, ONNXRecord, QuantizedRecord
    from convnext_deploy.graphs.lint.rule import Finding

_LARGEST_LAYERS = 20
_NAMES = 4  # of a finding's places
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@click.command("inspect", cls=Verb)
@click.argument("file", type=click.Path(path_type=Path))
@common_options("inspect")
def command(file: Path, as_json: bool) -> None:
    """Show what is in FILE (ONNX or TensorRT plan of any origin, or an artifact): layers, precisions, sizes, broken rules."""
    from convnext_deploy.api.inspect import inspect
    from convnext_deploy.cli.tables import create_console
    from convnext_deploy.graphs.lint.onnx_summary import ONNXRecord

    found = inspect(file)
    if as_json:
        write(found.to_json())
        return
    console = create_console()
    if isinstance(found, ONNXRecord):
        _print_onnx(found, console)
    else:
        _print_engine(found, console)
    if isinstance(found, ONNXRecord) and any(map(_counts(found), found.findings)):
        tell_to_do("mend the errors above, each by its fix, where the file was made")
    else:
        tell_next("bench", file)


def _counts(found: ONNXRecord) -> Callable[[Finding], bool]:
    """Return which findings are errors where a file is used: those of TensorRT are none in one for another runtime."""
    elsewhere = _other_runtime(found) is not None
    return lambda finding: finding.severity == "error" and (finding.everywhere or not elsewhere)


def _other_runtime(found: ONNXRecord) -> str | None:
    """Return the runtime other than TensorRT that a file of ours was quantized for."""
    details = found.metadata.get("details") if found.metadata else None
    target = details.get("target") if isinstance(details, dict) else None
    return target if target in ("onnxruntime", "openvino") else None


def _print_onnx(found: ONNXRecord, console: Console) -> None:
    from convnext_deploy.cli.tables import print_facts, print_table

    opsets = ", ".join(f"{'' if name == 'ai.onnx' else name + ' '}{version}" for name, version in found.opsets.items())
    facts = {
        "file": found.file,
        "format": f"ONNX, opset {opsets}, IR {found.ir_version}" + (f", by {found.producer}" if found.producer else ""),
        "size": _size(found.size_bytes)
        + (f", and {_size(found.external_bytes)} of weights beside it" if found.external_bytes else ""),
        "inputs": "; ".join(f"{v.name} {v.type} {_shape(v.shape)}" for v in found.inputs),
        "outputs": "; ".join(f"{v.name} {v.type} {_shape(v.shape)}" for v in found.outputs),
        "batch": "dynamic" if found.dynamic_batch else "frozen",
        **_describe_metadata(found),
    }
    print_facts(console, facts)
    console.print()
    precisions = list(dict.fromkeys(kind for counts in found.operators.values() for kind in counts))
    operators = (
        (name, *(str(counts.get(kind, "")) for kind in precisions)) for name, counts in found.operators.items()
    )
    print_table(console, ("operator", *precisions), operators, left=("operator",))
    if found.quantized:
        _print_heading(console, f"Quantized MatMul and Conv nodes: {len(found.quantized)}")
        titles = ("layer", "operator", "runs in", "input", "weight", "output")
        print_table(console, titles, map(_quantized_cells, found.quantized), left=titles)
    total = sum(layer.size_bytes for layer in found.layers) or 1
    shown = found.layers[:_LARGEST_LAYERS]
    _print_heading(console, f"Largest layers: {len(shown)} of {len(found.layers)}")
    layers = ((x.layer, x.operator, f"{x.size_bytes / 1e3:,.1f}", f"{100 * x.size_bytes / total:.1f}") for x in shown)
    print_table(console, ("layer", "operator", "kB", "%"), layers, left=("layer", "operator"))
    _print_findings(found, console)


def _print_heading(console: Console, text: str) -> None:
    console.print()
    console.print(text)
    console.print()


def _quantized_cells(node: QuantizedRecord) -> tuple[str, ...]:
    rounded = "rounded" if node.output_quantized else ""
    grids = _grid(node.activation, "per tensor"), _grid(node.weight)
    return node.layer, node.operator, node.precision, *grids, rounded


def _print_findings(found: ONNXRecord, console: Console) -> None:
    from convnext_deploy.graphs.lint.rule import SEVERITIES

    counts = {kind: sum(finding.severity == kind for finding in found.findings) for kind in SEVERITIES}
    listed = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count)
    console.print()
    console.print(f"Rules for TensorRT: {listed or 'all kept'}", style="bold")
    if found.findings and (runtime := _other_runtime(found)) is not None:
        console.print(f"This file is for {runtime}; they count only where TensorRT is to run it.")
    for rule in found.findings:
        more = len(rule.places) - _NAMES
        names = ", ".join(rule.places[:_NAMES]) + (f" and {more:,} more" if more > 0 else "")
        severity = f"{rule.severity} for every runtime" if rule.everywhere else rule.severity
        console.print()
        console.print(f"{severity}: {rule.name} ({len(rule.places):,}): {names}", style=_STYLES[rule.severity])
        console.print(f"  Cost: {rule.cost}.", soft_wrap=True)
        console.print(f"  Fix: {rule.fix}.", soft_wrap=True)


def _print_engine(found: EngineRecord, console: Console) -> None:
    from convnext_deploy.cli.tables import print_facts

    written = f"{found.flavor or 'of unknown origin'} {found.version or ''}".strip()
    nodes = ", ".join(f"{count} {kind}" for kind, count in found.nodes.items())
    facts = {
        "file": found.file,
        "format": f"TensorRT plan, {written}",
        "size": _size(found.size_bytes),
        "MatMul/Conv nodes": nodes or "not readable",
        **{key.replace("_", " "): _plain(value) for key, value in found.manifest.items()},
    }
    print_facts(console, facts)
    if len(found.float_nodes) < sum(found.nodes.values()) and found.float_nodes:
        console.print()
        console.print(f"MatMul/Conv nodes in float: {len(found.float_nodes)}")
        for name in found.float_nodes:
            console.print(f"  {name}")
    for note in found.notes:
        console.print(f"- {note}")


def _describe_metadata(found: ONNXRecord) -> dict[str, str]:
    metadata = found.metadata
    if not metadata:
        return {}
    # what stands in a file may be anything
    model, details = (told if isinstance(told := metadata.get(key), dict) else {} for key in ("model", "details"))
    names = told if isinstance(told := metadata.get("class_names"), list) else []
    facts = {
        "model": f"{model.get('variant', '?')}{_describe_answer(model.get('num_classes', '?'), found)}",
        "precision": str(metadata.get("precision", "?")),
        "quantized for": str(details.get("target") or ""),
        "classes": ", ".join(map(str, names[:5])) + (" …" if len(names) > 5 else "") if names else "",
        "license": str(metadata.get("license") or ""),
    }
    return {key: text for key, text in facts.items() if text}


def _describe_answer(classes: Any, found: ONNXRecord) -> str:
    """Say what a network of ours gives: classes, or features, as many as its one output has for an image or a place of it."""
    if classes != 0:
        return f" with {classes} classes"
    shape = found.outputs[0].shape if found.outputs else ()
    numbers = f" of {shape[1]} numbers" if len(shape) > 1 else ""
    where = ", at each place of a map" if len(shape) == 4 else ""
    return f", a feature extractor: features{numbers}{where}"


def _grid(grid: GridRecord | None, usual: str = "") -> str:
    """Return the integers of an input or weight; `usual` is how far its scales reach where nothing is said of it."""
    if grid is None:
        return "float"
    reach = "" if grid.granularity == usual else f" {grid.granularity.replace('per channel, ', 'by ')}"
    return f"{grid.type}{reach}" + ("" if grid.zero_point == "0" else f", zero {grid.zero_point}")


def _shape(shape: Iterable[int | str | None]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _plain(value: Any) -> str:
    """Return a value of a manifest on one line, without the marks of Python or JSON."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value)) or "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
