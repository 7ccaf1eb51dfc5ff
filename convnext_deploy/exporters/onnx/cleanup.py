"""Tidy an exported graph: no transposes that undo each other, weights and nodes under the names of their layers."""

from __future__ import annotations

from collections import Counter

import onnx

_ROLES = {"MatMul": "weight", "Add": "bias", "Mul": "gamma"}
"""Operator of a layer → what its constant is, where the exporter has made one without a name."""


def cancel_transposes(graph: onnx.GraphProto) -> None:
    """Let whoever reads a transposed transpose read the original, where the two undo each other; drop what nobody reads.

    A downsampling layer ends in channels-last for the residual stream and the norms, and the depthwise convolution of the next
    block starts by going back. `graph` is changed in place.
    """
    producers = {name: node for node in graph.node for name in node.output}
    replaced: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = replaced.get(name, name)
        before = producers.get(node.input[0]) if node.op_type == "Transpose" else None
        if before is not None and before.op_type == "Transpose":
            first, second = _permutation(before), _permutation(node)
            if [first[axis] for axis in second] == list(range(len(second))):
                replaced[node.output[0]] = before.input[0]
    results = {value.name for value in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | results
        unread = [node for node in graph.node if not read.intersection(node.output)]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def _permutation(node: onnx.NodeProto) -> list[int]:
    return list(next(attribute.ints for attribute in node.attribute if attribute.name == "perm"))


def name_weights(graph: onnx.GraphProto) -> None:
    """Give every layer its own weights, under its name: `stages.0.0.pwconv1.weight`. `graph` is changed in place.

    The exporter shares equal constants and leaves transposed weights without a name; a tool that then changes one layer's
    weight would change another's. Constants of one element stay shared.

    Args:
        graph: its nodes carry the names of their layers in `doc_string`.
    """
    weights = {initializer.name: initializer for initializer in graph.initializer}
    taken: Counter[str] = Counter()
    kept: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            weight = weights.get(name)
            if weight is None:
                continue
            new = name
            if node.doc_string and weight.data_type == onnx.TensorProto.FLOAT and max(weight.dims, default=1) > 1:
                role = name.rpartition(".")[2] if "." in name else _ROLES.get(node.op_type, "constant")
                new = f"{node.doc_string}.{role}"
                taken[new] += 1
                if taken[new] > 1:
                    new = f"{new}_{taken[new]}"
            if new not in kept:
                kept[new] = onnx.TensorProto()
                kept[new].CopyFrom(weight)
                kept[new].name = new
            node.input[place] = new
    del graph.initializer[:]
    graph.initializer.extend(kept.values())
