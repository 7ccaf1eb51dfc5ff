"""Remove transposes that undo each other, and name weights after their layers, in a graph as PyTorch exports it."""

from collections import Counter

import onnx_ir as ir

_ROLES = {"MatMul": "weight", "Add": "bias", "Mul": "gamma"}
"""Operator of a layer → what its constant is, where the exporter has made one without a name."""


def cancel_transposes(graph: ir.Graph) -> None:
    """Let whoever reads a transposed transpose read the original, where the two undo each other.

    A downsampling layer ends in channels-last for the residual stream and the norms, and the depthwise convolution of the next
    block starts by going back. `graph` is changed in place.
    """
    for node in graph:
        before = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if before is not None and before.op_type == "Transpose" and not node.outputs[0].is_graph_output():
            first, second = (each.attributes["perm"].as_ints() for each in (before, node))
            original = before.inputs[0]
            if original is not None and [first[axis] for axis in second] == list(range(len(second))):
                node.outputs[0].replace_all_uses_with(original)


def name_weights(graph: ir.Graph) -> None:
    """Give every layer its own weights, under its name: `stages.0.0.pwconv1.weight`. `graph` is changed in place.

    The exporter shares equal constants and leaves transposed weights without a name; a tool that then changes one layer's
    weight would change another's. Constants of one element stay shared.

    Args:
        graph: its nodes carry the names of their layers in `doc_string`.
    """
    taken: Counter[str] = Counter()
    kept: dict[str, ir.Value] = {}
    for node in graph:
        for place, value in enumerate(node.inputs):
            if value is None or not value.is_initializer():
                continue
            if (
                node.doc_string
                and value.dtype == ir.DataType.FLOAT
                and max((value.shape or ir.Shape([])).numpy(), default=1) > 1
            ):
                role = (value.name or "").rpartition(".")
                name = f"{node.doc_string}.{role[2] if role[1] else _ROLES.get(node.op_type, 'constant')}"
                taken[name] += 1
                name = name if taken[name] == 1 else f"{name}_{taken[name]}"
                value = ir.val(name, const_value=value.const_value)
                node.replace_input_with(place, value)
            kept[value.name or ""] = value
    graph.initializers.clear()
    for value in kept.values():
        graph.register_initializer(value)
