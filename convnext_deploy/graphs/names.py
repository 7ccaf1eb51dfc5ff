"""Names in the graphs that are written here: of their input, their outputs and their nodes; what reads them need not load ONNX."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

INPUT_NAME, OUTPUT_NAME = "images", "logits"
OUTPUT_NAMES = {
    "logits": (OUTPUT_NAME,),
    "probabilities": ("probabilities",),
    "top-k": ("scores", "classes"),
    "features": ("features",),
    "feature-map": ("feature_map",),
}
"""`GraphIO.output` → names of the graph's outputs."""


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node after its layer and its operator, `stages.0.0.pwconv1/MatMul`, a second one `…/MatMul_2`, in place.

    Those of no layer go by their operator. Profilers, TensorRT and viewers show these names.

    Args:
        graph: its nodes carry the names of their layers in `doc_string`.
    """
    taken: Counter[str] = Counter()
    for node in graph.node:
        name = "/".join(filter(None, (node.doc_string, node.op_type)))
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def layer_of_node(name: str) -> str:
    """Return the layer in a name that `name_nodes` gave; empty where there is none."""
    return name.rpartition("/")[0]
