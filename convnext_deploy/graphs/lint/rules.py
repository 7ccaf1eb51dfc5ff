"""All rules for ONNX files of a ConvNeXt that are to run in TensorRT, and the check of a graph against them."""

from __future__ import annotations

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph
from convnext_deploy.graphs.lint.file_rules import FILE_RULES
from convnext_deploy.graphs.lint.float_rules import FLOAT_RULES
from convnext_deploy.graphs.lint.grid_rules import GRID_RULES
from convnext_deploy.graphs.lint.layer_rules import LAYER_RULES
from convnext_deploy.graphs.lint.qdq_placement_rules import PLACEMENT_RULES
from convnext_deploy.graphs.lint.rule import SEVERITIES, Finding, Rule

RULES: tuple[Rule, ...] = (*GRID_RULES, *LAYER_RULES, *PLACEMENT_RULES, *FLOAT_RULES, *FILE_RULES)


def apply_rules(graph: AnalyzedGraph) -> tuple[Finding, ...]:
    """Return which rules a graph breaks, errors first, each with its places in the order of the graph."""
    found = []
    for rule in RULES:
        if places := tuple(dict.fromkeys(rule.find(graph))):
            found.append(Finding(rule.name, rule.severity, places, rule.cost, rule.fix))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
