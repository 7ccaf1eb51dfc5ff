"""Compare the types in which an engine computes its MatMul/Conv nodes with those that its ONNX file asks for.

TensorRT says nothing when it computes a quantized node in float. A plan of TensorRT-RTX holds its intermediate code as text,
which tells without a GPU; of standard TensorRT the engine inspector tells, on the GPU. The text is documented nowhere, so whoever
cannot read it any more gets no precision report, and that is all.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import onnx_ir as ir

from convnext_deploy.artifacts.details import PrecisionReport
from convnext_deploy.graphs.compute_nodes import find_compute_nodes
from convnext_deploy.graphs.onnx_view import GraphView

_TENSOR = re.compile(rb'=\{ [^\n]*?name="([^"\n]+)"[^\n]* type=(\w+) \}')
_NODE = re.compile(rb'(?:corrltn|fully_connected)=\{ name="([^"\n]+)" output=\{[^}\n]*\} input=\{([^}\n]*)\}')
_OPERAND = re.compile(rb'"([^"]+)"')
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_NODE_LAYER = re.compile(r"conv|gemm|matmul|matrix|fully|fusion", re.IGNORECASE)
_TYPES = {
    "INT8": ("int8",),
    "FP8": ("fp8", "float8", "fp8_e4m3"),
    "BF16": ("bfloat16", "bf16", "bfloat"),
    "FP16": ("half", "fp16", "float16"),
    "FP32": ("float", "fp32", "float32", "tf32"),
}
_TACTICS = (
    ("INT8", r"_i8i8_|_i8i32_|imma|int8"),
    ("FP8", r"e4m3|f8f8|fp8|qmma"),
    ("FP16", r"f16f16|h16816|h884|hmma"),
    ("FP32", r"f32f32|tf32|sgemm|s1688"),
)
EIGHT_BITS = ("INT8", "FP8")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class PlanNode:
    """A MatMul or Conv node of an engine: the ONNX node it came from, and the types of its activation and weight."""

    name: str
    types: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The type it computes in: `INT8` or `FP8` where both inputs are, else that of the first that is not."""
        return next((kind for kind in self.types if kind not in EIGHT_BITS), self.types[0] if self.types else UNKNOWN)


def report_precisions(found: Iterable[PlanNode], view: GraphView) -> PrecisionReport | None:
    """Compare the MatMul/Conv nodes of an engine with those of its ONNX graph; None where none of them can be told apart."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for node in found:
        kinds[node.name].add(node.precision)
    counts: Counter[str] = Counter()
    requested: Counter[str] = Counter()
    fallbacks, unseen = [], []
    for asked in find_compute_nodes(view).compute_nodes:
        seen = sorted(kinds.get(plan_name(asked.node), set()) - {UNKNOWN})
        kind = next((k for k in seen if k not in EIGHT_BITS), seen[0]) if seen else UNKNOWN
        counts[kind] += 1
        if asked.quantized_type is None:
            continue
        requested[asked.quantized_type] += 1
        if kind == UNKNOWN:
            unseen.append(asked.layer)
        elif kind != asked.quantized_type:
            fallbacks.append(f"{asked.layer}: {kind}")
    if not set(counts) - {UNKNOWN}:
        return None
    return PrecisionReport(
        dict(sorted(counts.items())), requested["INT8"], tuple(fallbacks), tuple(unseen), requested["FP8"]
    )


def plan_name(node: ir.Node) -> str:
    """Return the name that TensorRT's ONNX parser gives to a node, which is its own or made from that of its result."""
    return node.name or f"node_of_{node.outputs[0].name}"


def read_plan_nodes(plan: bytes) -> list[PlanNode]:
    """Return the MatMul/Conv nodes of a TensorRT-RTX plan; none where it is not such a plan or is written differently."""
    types = dict(_TENSOR.findall(plan))
    return [
        PlanNode(
            name.decode(errors="replace"),
            tuple(
                _type_name(types.get(operand, b"").decode(errors="replace"))
                for operand in _OPERAND.findall(operands)[:2]
            ),
        )
        for name, operands in _NODE.findall(plan)
    ]


def read_layers(text: str) -> list[PlanNode]:
    """Return the MatMul/Conv nodes in the engine inspector's JSON of TensorRT 10 or 11 (`Bindings`, `I/O Tensors`), if readable.

    A layer stands for every ONNX node that it was made from. Its types are those of its first input and of its weights; where
    one of them is not given, because the batch is open or the weights lie elsewhere, the kernel's name tells as well.
    """
    return [
        PlanNode(name, types)
        for layer in _read_entries(text)
        if _NODE_LAYER.search(f"{layer.get('LayerType')} {layer.get('ParameterType')}")
        for types in [_layer_types(layer)]
        for name in _layer_nodes(layer)
    ]


def read_sources(text: str) -> dict[str, list[str]]:
    """Return the layers in the engine inspector's JSON with the ONNX nodes that each was made from; none where unreadable."""
    return {str(layer["Name"]): _layer_nodes(layer) for layer in _read_entries(text) if "Name" in layer}


def _read_entries(text: str) -> list[dict[str, Any]]:
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def inspect_engine(trt: ModuleType, engine: Any, context: Any) -> str:
    """Return the engine inspector's JSON of a loaded engine, for the shapes set in its execution context."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _layer_nodes(layer: Mapping[str, Any]) -> list[str]:
    named = _ONNX_NODE.findall(str(layer.get("Metadata", "")))
    return named or [part.strip() for part in str(layer.get("Name", "")).split(" + ")]


def _layer_types(layer: Mapping[str, Any]) -> tuple[str, ...]:
    inputs = layer.get("Inputs")
    first = inputs[0] if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) else {}
    weights = layer.get("Weights")
    given = [
        _type_name(str(first.get("DataType") or first.get("Datatype") or first.get("Format/Datatype") or "")),
        _type_name(str(weights.get("Type", "") if isinstance(weights, dict) else "")),
    ]
    tactic = str(layer.get("TacticName", ""))
    kernel = next((kind for kind, pattern in _TACTICS if re.search(pattern, tactic)), UNKNOWN)
    # weights alone may be INT8 where the node is float
    return tuple(given) if UNKNOWN not in given else tuple(k for k in (*given, kernel) if k != UNKNOWN)


def _type_name(text: str) -> str:
    """Return `INT8` for `int8`, `Int8` or `Thirty-two wide channel vectorized row major Int8 format.`, and so on."""
    words = set(re.findall(r"\w+", text.lower()))
    return next((kind for kind, spellings in _TYPES.items() if words & set(spellings)), UNKNOWN)
