"""Known traps on the way of a ConvNeXt from ONNX to TensorRT: each is a function, with its cost and its cure in one table."""

from __future__ import annotations

from convnext_deploy.inspection.products import Subject
from convnext_deploy.inspection.trap_kind import SEVERITIES, Trap, TrapKind
from convnext_deploy.inspection.traps_file import FILE_TRAPS
from convnext_deploy.inspection.traps_float import FLOAT_TRAPS
from convnext_deploy.inspection.traps_grid import GRID_TRAPS
from convnext_deploy.inspection.traps_placement import PLACEMENT_TRAPS
from convnext_deploy.inspection.traps_products import PRODUCT_TRAPS

TRAPS: tuple[TrapKind, ...] = (*GRID_TRAPS, *PRODUCT_TRAPS, *PLACEMENT_TRAPS, *FLOAT_TRAPS, *FILE_TRAPS)


def find_traps(subject: Subject) -> tuple[Trap, ...]:
    """Return the traps in a graph, errors first, each with its places in the order of the graph."""
    found = []
    for kind in TRAPS:
        places = tuple(dict.fromkeys(kind.find(subject)))
        if places:
            found.append(Trap(kind.name, kind.severity, places, kind.cost, kind.cure))
    return tuple(sorted(found, key=lambda trap: SEVERITIES.index(trap.severity)))
