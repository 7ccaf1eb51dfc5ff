"""Everything in an ONNX file: interface, operators by precision, quantized nodes, size by layer, and broken rules."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from convnext_deploy.errors import ArtifactError, first_line
from convnext_deploy.graphs.compute_nodes import (
    INTEGER_OPERATORS,
    AnalyzedGraph,
    ComputeNode,
    Grid,
    describe_zero_point,
    find_compute_nodes,
    granularity,
    layer_name,
    node_label,
)
from convnext_deploy.graphs.lint.file_rules import FILE_RULES
from convnext_deploy.graphs.lint.float_rules import FLOAT_RULES
from convnext_deploy.graphs.lint.grid_rules import GRID_RULES
from convnext_deploy.graphs.lint.layer_rules import LAYER_RULES
from convnext_deploy.graphs.lint.rule import SEVERITIES, Finding, Place
from convnext_deploy.graphs.lint.validity_rules import VALIDITY_RULES
from convnext_deploy.graphs.onnx_io import parse_metadata
from convnext_deploy.graphs.onnx_view import PAIR, GraphView, Shape, external_tensors, open_view, shape_of, type_name
from convnext_deploy.system.results import Result, plain

RULES = (*VALIDITY_RULES, *GRID_RULES, *LAYER_RULES, *FLOAT_RULES, *FILE_RULES)


@dataclass(frozen=True)
class ValueRecord:
    """An input or output; names and None in `shape` are dynamic dimensions."""

    name: str
    type: str
    shape: Shape


@dataclass(frozen=True)
class GridRecord:
    """The integers of an activation or weight: their type, where zero lies, and over what a scale extends, in words."""

    type: str
    zero_point: str
    granularity: str


@dataclass(frozen=True)
class QuantizedRecord:
    """A MatMul, Gemm or Conv node with a quantized input. `activation` and `weight` are None where that one is float."""

    layer: str
    operator: str
    precision: str
    activation: GridRecord | None
    weight: GridRecord | None
    output_quantized: bool


@dataclass(frozen=True)
class LayerSize:
    """The bytes of all that a layer keeps in the file; what two layers share counts for the first."""

    layer: str
    operator: str
    size_bytes: int


@dataclass(frozen=True, repr=False)
class ONNXRecord(Result):
    """All that is in an ONNX file. `operators`: operator → precision → count. `metadata`: ours, empty in files of others."""

    file: str
    size_bytes: int
    external_bytes: int
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    inputs: tuple[ValueRecord, ...]
    outputs: tuple[ValueRecord, ...]
    dynamic_batch: bool
    metadata: Mapping[str, Any]
    operators: Mapping[str, Mapping[str, int]]
    quantized: tuple[QuantizedRecord, ...]
    layers: tuple[LayerSize, ...]
    findings: tuple[Finding, ...]

    def headline(self) -> str:
        """Say which file it is, and how many rules it breaks."""
        worst = Counter(finding.severity for finding in self.findings)
        found = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in worst.items())
        return f"{self.file}, {(self.size_bytes + self.external_bytes) / 1e6:.1f} MB: {found or 'no rule is broken'}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each broken rule."""
        return [plain(finding) for finding in self.findings]

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps({"format": "onnx", **dataclasses.asdict(self)}, indent=1)


def inspect_onnx(path: Path) -> ONNXRecord:
    """Read an ONNX file of any origin and say what is in it.

    Raises: ArtifactError: if it cannot be read, is cut off, or its weights beside it are missing.
    """
    try:
        return _inspect(path)
    except (TypeError, ValueError, LookupError) as error:
        # what protobuf, onnx and numpy raise on tensors and attributes that contradict themselves
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)}); export it again."
        ) from error


def _inspect(path: Path) -> ONNXRecord:
    view = open_view(path)
    graph, model = find_compute_nodes(view), view.model
    inputs = tuple(map(_value, view.inputs))
    try:
        metadata = parse_metadata(model.metadata_props)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return ONNXRecord(
        file=str(path),
        size_bytes=path.stat().st_size,
        external_bytes=sum(tensor.nbytes for tensor in external_tensors(model)),
        ir_version=model.ir_version,
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        producer=" ".join((model.producer_name or "", model.producer_version or "")).strip(),
        inputs=inputs,
        outputs=tuple(map(_value, model.graph.outputs)),
        dynamic_batch=bool(inputs) and all(v.shape and not isinstance(v.shape[0], int) for v in inputs),
        metadata=metadata,
        operators=count_operators(graph),
        quantized=tuple(_quantized(node) for node in graph.compute_nodes if node.activation_grid or node.weight_grid),
        layers=layer_sizes(view),
        findings=apply_rules(graph),
    )


def apply_rules(graph: AnalyzedGraph) -> tuple[Finding, ...]:
    """Return which rules a graph breaks, errors first, each with its places in the order of the graph."""
    found = []
    for rule in RULES:
        if places := tuple(dict.fromkeys(map(_place, rule.find(graph)))):
            found.append(Finding(rule.name, rule.severity, places, rule.cost, rule.fix, rule.everywhere))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def count_operators(graph: AnalyzedGraph) -> dict[str, dict[str, int]]:
    """Return operator → precision → count, the most frequent operators first; constants of the file are not counted."""
    precisions = {node.node: node.precision for node in graph.compute_nodes}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in graph.view.nodes:
        if node.op_type in PAIR or not any(map(graph.view.is_constant, node.outputs[:1])):
            counts[node.op_type][precisions.get(node) or _precision(node)] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    return {operator: dict(counter.most_common()) for operator, counter in ordered}


def layer_sizes(view: GraphView) -> tuple[LayerSize, ...]:
    """Return the layers by the bytes of their tensors, the largest first."""
    sizes: Counter[str] = Counter()
    operators: dict[str, str] = {}
    seen: set[ir.Value] = set()
    for node in view.nodes:
        if not node.outputs or view.is_constant(node.outputs[0]):
            continue  # what a weight passes through belongs to whoever reads it
        if new := set(view.weights_of(node)) - seen:
            layer = layer_name(view, node)
            operators.setdefault(layer, node.op_type)
            sizes[layer] += sum(weight.const_value.nbytes for weight in new if weight.const_value is not None)
            seen |= new
    return tuple(LayerSize(layer, operators[layer], size) for layer, size in sizes.most_common())


def _place(place: Place) -> str:
    if isinstance(place, ir.Node):
        return node_label(place)
    return place.layer if isinstance(place, ComputeNode) else place


def _precision(node: ir.Node) -> str:
    if node.op_type in INTEGER_OPERATORS:
        return "INT8"
    if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
        return type_name(node.inputs[0])
    return next((name for name in map(type_name, node.outputs) if name != "?"), "?")


def _value(value: ir.Value) -> ValueRecord:
    return ValueRecord(str(value.name), type_name(value), shape_of(value))


def _quantized(node: ComputeNode) -> QuantizedRecord:
    return QuantizedRecord(
        node.layer,
        f"depthwise {node.node.op_type}" if node.is_depthwise else node.node.op_type,
        node.precision,
        _grid(node.activation_grid),
        _grid(node.weight_grid),
        node.output_quantized,
    )


def _grid(grid: Grid | None) -> GridRecord | None:
    return None if grid is None else GridRecord(type_name(grid.integers), describe_zero_point(grid), granularity(grid))
