"""A rule: how what breaks it is found in a graph, what that costs, and how to fix it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph

Severity = Literal["error", "warning", "note"]
"""error: TensorRT refuses the file or gives other results; warning: slower, in float, or less exact; note: good to know."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# what many fixes begin with
EXPORT = "export the model with 'convnext-deploy export', or with torch.onnx.export(dynamo=True, opset_version=20)"
QUANTIZE = "quantize with 'convnext-deploy quantize --target tensorrt'"
SYMMETRIC = 'quantize_static with QInt8 and extra_options={"ActivationSymmetric": True, "WeightSymmetric": True}'


@dataclass(frozen=True)
class Rule:
    """A known problem of ONNX files; `find` names the nodes, layers or tensors in which a graph has it."""

    name: str
    severity: Severity
    find: Callable[[AnalyzedGraph], Iterator[str]]
    cost: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """A rule that a graph breaks: in which nodes, layers or tensors, what it costs, and how to fix it."""

    name: str
    severity: Severity
    places: tuple[str, ...]
    cost: str
    fix: str
