"""What a trap is: how it is found in a graph, what it costs, and its cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from convnext_deploy.graphs.compute_nodes import Subject

Severity = Literal["error", "warning", "note"]
"""error: TensorRT refuses the file or gives other results; warning: slower, in float, or less exact; note: good to know."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# what many cures begin with
EXPORT = "export the model with 'convnext-deploy export', or with torch.onnx.export(dynamo=True, opset_version=20)"
QUANTIZE = "quantize with 'convnext-deploy quantize --target tensorrt'"
SYMMETRIC = 'quantize_static with QInt8 and extra_options={"ActivationSymmetric": True, "WeightSymmetric": True}'


@dataclass(frozen=True)
class TrapKind:
    """A trap that is known; `find` names the nodes, layers or tensors in which a graph has it."""

    name: str
    severity: Severity
    find: Callable[[Subject], Iterator[str]]
    cost: str
    cure: str


@dataclass(frozen=True)
class Trap:
    """A trap that was found: in which nodes, layers or tensors, what it costs, and what to do."""

    name: str
    severity: Severity
    places: tuple[str, ...]
    cost: str
    cure: str


def node_label(node: onnx.NodeProto) -> str:
    """Return what a node is called: its name, or that of its result."""
    return node.name or next(iter(node.output), node.op_type)
