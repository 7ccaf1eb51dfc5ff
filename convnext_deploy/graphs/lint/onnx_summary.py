"""Everything in an ONNX file: interface, operators by precision, quantized nodes, size by layer, and broken rules."""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from convnext_deploy.errors import ArtifactError, first_line
from convnext_deploy.graphs.compute_nodes import (
    INTEGER_OPERATORS,
    AnalyzedGraph,
    ComputeNode,
    Grid,
    compute_precision,
    describe_zero_point,
    find_compute_nodes,
    granularity,
    layer_name,
)
from convnext_deploy.graphs.lint.file_rules import FILE_RULES
from convnext_deploy.graphs.lint.float_rules import FLOAT_RULES
from convnext_deploy.graphs.lint.grid_rules import GRID_RULES
from convnext_deploy.graphs.lint.layer_rules import LAYER_RULES
from convnext_deploy.graphs.lint.rule import SEVERITIES, Finding, Place, node_label
from convnext_deploy.graphs.onnx_io import read_metadata, short_name, tensor_bytes
from convnext_deploy.graphs.onnx_view import PAIR, GraphView, Shape, open_view, value_shape

RULES = (*GRID_RULES, *LAYER_RULES, *FLOAT_RULES, *FILE_RULES)


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


@dataclass(frozen=True)
class ONNXRecord:
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
    graph = find_compute_nodes(view)
    external = sum(tensor_bytes(t) for t in view.tensors.values() if t.data_location == TensorProto.EXTERNAL)
    inputs = tuple(_value(value) for value in view.inputs)
    try:
        metadata = read_metadata(view.model)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return ONNXRecord(
        file=str(path),
        size_bytes=path.stat().st_size,
        external_bytes=external,
        ir_version=view.model.ir_version,
        opsets=view.opsets,
        producer=" ".join((view.model.producer_name, view.model.producer_version)).strip(),
        inputs=inputs,
        outputs=tuple(_value(value) for value in view.model.graph.output),
        dynamic_batch=bool(inputs) and all(v.shape and not isinstance(v.shape[0], int) for v in inputs),
        metadata=metadata,
        operators=count_operators(graph),
        quantized=tuple(_quantized(view, node) for node in graph.compute_nodes if node.activation or node.weight),
        layers=layer_sizes(view),
        findings=apply_rules(graph),
    )


def apply_rules(graph: AnalyzedGraph) -> tuple[Finding, ...]:
    """Return which rules a graph breaks, errors first, each with its places in the order of the graph."""
    found = []
    for rule in RULES:
        if places := tuple(dict.fromkeys(map(_place, rule.find(graph)))):
            found.append(Finding(rule.name, rule.severity, places, rule.cost, rule.fix))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def count_operators(graph: AnalyzedGraph) -> dict[str, dict[str, int]]:
    """Return operator → precision → count, the most frequent operators first; constants of the file are not counted."""
    view = graph.view
    compute = {id(node.proto): node for node in graph.compute_nodes}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in view.nodes:
        if node.op_type not in PAIR and node.output and view.is_constant(node.output[0]):
            continue
        counts[node.op_type][_precision(view, node, compute.get(id(node)))] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    return {operator: dict(counter.most_common()) for operator, counter in ordered}


def layer_sizes(view: GraphView) -> tuple[LayerSize, ...]:
    """Return the layers by the bytes of their tensors, the largest first."""
    sizes: Counter[str] = Counter()
    operators: dict[str, str] = {}
    seen: set[str] = set()
    for node in view.nodes:
        if not node.output or view.is_constant(node.output[0]):
            continue  # what a weight passes through belongs to whoever reads it
        new = {tensor.name: tensor for tensor in view.weights_of(node) if tensor.name not in seen}
        if new:
            layer = layer_name(view, node)
            operators.setdefault(layer, node.op_type)
            sizes[layer] += sum(tensor_bytes(tensor) for tensor in new.values())
            seen.update(new)
    return tuple(LayerSize(layer, operators[layer], size) for layer, size in sizes.most_common())


def _place(place: Place) -> str:
    if isinstance(place, onnx.NodeProto):
        return node_label(place)
    return place.layer if isinstance(place, ComputeNode) else place


def _precision(view: GraphView, node: onnx.NodeProto, compute: ComputeNode | None) -> str:
    if compute is not None:
        return compute_precision(view, compute)
    if node.op_type in INTEGER_OPERATORS:
        return "INT8"
    if node.op_type == "QuantizeLinear":
        return short_name(view.type_of(node.output[0]))
    if node.op_type == "DequantizeLinear":
        return short_name(view.type_of(node.input[0]))
    known = [view.type_of(name) for name in node.output if view.type_of(name)]
    return short_name(known[0] if known else TensorProto.UNDEFINED)


def _value(value: onnx.ValueInfoProto) -> ValueRecord:
    return ValueRecord(value.name, short_name(value.type.tensor_type.elem_type), value_shape(value))


def _quantized(view: GraphView, node: ComputeNode) -> QuantizedRecord:
    return QuantizedRecord(
        node.layer,
        f"depthwise {node.proto.op_type}" if node.is_depthwise(view) else node.proto.op_type,
        compute_precision(view, node),
        _grid(node.activation),
        _grid(node.weight),
        node.output_quantized,
    )


def _grid(grid: Grid | None) -> GridRecord | None:
    return None if grid is None else GridRecord(short_name(grid.integer), describe_zero_point(grid), granularity(grid))
