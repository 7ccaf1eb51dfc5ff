"""A rule: how what breaks it is found in a graph, what that costs, and how to fix it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph, ComputeNode

Severity = Literal["error", "warning", "note"]
"""error: TensorRT, or every runtime, refuses the file or gives other results; warning: slower, in float, or less exact; note: good
to know."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# what many fixes begin with
EXPORT = "export the model with 'convnext-deploy export', or with torch.onnx.export(dynamo=True, opset_version=20)"
QUANTIZE = "quantize with 'convnext-deploy quantize --target tensorrt'"
SYMMETRIC = 'quantize_static with QInt8 and extra_options={"ActivationSymmetric": True, "WeightSymmetric": True}'

Place = ComputeNode | ir.Node | str
"""Where a rule is broken: a node, shown by its layer or name, or words for anything else."""


@dataclass(frozen=True)
class Rule:
    """A known problem of ONNX files; `find` yields the nodes, layers or tensors in which a graph has it.

    `everywhere`: it is an error for every runtime, not for TensorRT alone.
    """

    name: str
    severity: Severity
    find: Callable[[AnalyzedGraph], Iterator[Place]]
    cost: str
    fix: str
    everywhere: bool = False


@dataclass(frozen=True)
class Finding:
    """A rule that a graph breaks: in which nodes, layers or tensors, what it costs, how to fix it, and for whom."""

    name: str
    severity: Severity
    places: tuple[str, ...]
    cost: str
    fix: str
    everywhere: bool = False


def _rule(
    severity: Severity, cost: str, fix: str, *, everywhere: bool = False
) -> Callable[[Callable[[AnalyzedGraph], Iterator[Place]]], Rule]:
    """Make a rule of the function below, which finds its places: `bias_int32` becomes the rule `bias-int32`."""
    return lambda find: Rule(find.__name__.replace("_", "-"), severity, find, cost, fix, everywhere)


error, warning, note = (partial(_rule, severity) for severity in SEVERITIES)
invalid = partial(_rule, "error", everywhere=True)
