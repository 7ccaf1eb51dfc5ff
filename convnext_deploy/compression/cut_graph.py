"""Narrow the blocks of an exported graph, in any form that our exporters write: tracing a network for every width takes too long.

The hidden units that stay are the first ones. The result takes as long as the file of a pruned network of the same widths, which is
all that it is for: what it computes is of no use.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from convnext_deploy.errors import ArtifactError

_BLOCK = re.compile(r"stages\.(\d+)\.(\d+)(?=[./])")


def cut_graph(
    model: onnx.ModelProto, full: Sequence[Sequence[int]], widths: Sequence[Sequence[int]]
) -> onnx.ModelProto:
    """Return a graph whose blocks have fewer hidden units, or none.

    Args:
        model: as `export_network` writes it, with its initializers; left alone.
        full: hidden units of each block in it, by model stage; 0: the block is not there.
        widths: of the result, likewise.

    Raises: ArtifactError: if a block is not built as one of ours.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]  # shapes that may be others now
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    blocks = _nodes_of_blocks(graph.node)
    for stage, (before, after) in enumerate(zip(full, widths, strict=True)):
        for number, (own, width) in enumerate(zip(before, after, strict=True)):
            if own == width:
                continue
            nodes = blocks.get((stage, number), [])
            if width:
                _narrow(nodes, initializers, own, width, f"stages.{stage}.{number}")
            else:
                _bypass(graph, nodes, initializers, f"stages.{stage}.{number}")
    _drop_unused(graph, initializers)
    return result


def _nodes_of_blocks(nodes: Sequence[NodeProto]) -> dict[tuple[int, int], list[NodeProto]]:
    found: dict[tuple[int, int], list[NodeProto]] = {}
    for node in nodes:
        if block := _BLOCK.match(node.name):
            found.setdefault((int(block[1]), int(block[2])), []).append(node)
    return found


def _narrow(nodes: Sequence[NodeProto], tensors: dict[str, TensorProto], full: int, width: int, block: str) -> None:
    """Give the nodes of a block weights that are cut where they have `full` units; no other side of a block is so long."""
    cut = 0
    for node in nodes:
        for place, name in enumerate(node.input):
            tensor = tensors.get(name)
            if tensor is None:
                continue
            array = numpy_helper.to_array(tensor)
            if full in array.shape:
                array = array[tuple(slice(width) if side == full else slice(None) for side in array.shape)]
                cut += 1
            elif array.dtype == np.int64 and array.ndim == 1 and full in array:  # a shape
                array = np.where(array == full, width, array)
            else:
                continue
            own = f"{name}.{block}.{width}"  # others may share it
            tensors[own] = numpy_helper.from_array(np.ascontiguousarray(array), own)
            node.input[place] = own
    if not cut:
        raise ArtifactError(
            f"{block} has no weight with {full} hidden units; expected a block as our exporters write it."
        )


def _bypass(graph: onnx.GraphProto, nodes: Sequence[NodeProto], tensors: Mapping[str, TensorProto], block: str) -> None:
    """Let what comes in go on in the place of the sum at the end of a block."""
    makers = {name: node for node in nodes for name in node.output}

    def comes_in(name: str) -> bool:
        while name in makers and makers[name].op_type in ("Transpose", "Reshape"):
            name = makers[name].input[0]
        return name not in makers and name not in tensors

    sums = [
        (node, next(filter(comes_in, node.input)))
        for node in nodes
        if node.op_type == "Add" and any(map(comes_in, node.input))
    ]
    if len(sums) != 1:
        raise ArtifactError(f"{block} has {len(sums)} sums with its input; expected one, as our exporters write it.")
    ((last, source),) = sums
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == last.output[0]:
                node.input[place] = source
    for output in graph.output:
        if output.name == last.output[0]:
            raise ArtifactError(f"{block} is the end of the graph; expected a head behind it.")


def _drop_unused(graph: onnx.GraphProto, tensors: Mapping[str, TensorProto]) -> None:
    """Leave out nodes that nothing is made of any more, and initializers that no node reads."""
    needed = {output.name for output in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    nodes = list(reversed(kept))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in tensors.items() if name in needed)
