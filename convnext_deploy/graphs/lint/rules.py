"""Known traps on the way of a ConvNeXt from ONNX to TensorRT: each is a function, with its cost and its cure in one table."""

from __future__ import annotations

from convnext_deploy.graphs.compute_nodes import Subject
from convnext_deploy.graphs.lint.file_rules import FILE_TRAPS
from convnext_deploy.graphs.lint.float_rules import FLOAT_TRAPS
from convnext_deploy.graphs.lint.grid_rules import GRID_TRAPS
from convnext_deploy.graphs.lint.layer_rules import PRODUCT_TRAPS
from convnext_deploy.graphs.lint.qdq_placement_rules import PLACEMENT_TRAPS
from convnext_deploy.graphs.lint.rule import SEVERITIES, Trap, TrapKind

TRAPS: tuple[TrapKind, ...] = (*GRID_TRAPS, *PRODUCT_TRAPS, *PLACEMENT_TRAPS, *FLOAT_TRAPS, *FILE_TRAPS)


def find_traps(subject: Subject) -> tuple[Trap, ...]:
    """Return the traps in a graph, errors first, each with its places in the order of the graph."""
    found = []
    for kind in TRAPS:
        places = tuple(dict.fromkeys(kind.find(subject)))
        if places:
            found.append(Trap(kind.name, kind.severity, places, kind.cost, kind.cure))
    return tuple(sorted(found, key=lambda trap: SEVERITIES.index(trap.severity)))
