"""Sum the times of a runtime's kernels by layers of the network, and find those that take longer than in another file of it."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.names import layer_of_node
from convnext_deploy.runners.profiling import Kernel

BETWEEN = "between layers"
"""What no layer could be found for."""

_NODE = re.compile(r"(?:[\w-]+\.)*[\w-]+/[A-Za-z]\w*")
_MATMUL_OR_CONV = re.compile(r"/(?:Conv|MatMul|Gemm|MatMulIntegerToFloat)(?:_\d+)?$")
_CONVERSION = re.compile(r"Quantize|Reorder|Cast|Convert|Transpose", re.IGNORECASE)
_BEFORE = re.compile(r"Quantize|ReorderInput", re.IGNORECASE)  # conversions that are for what comes after them


@dataclass(frozen=True)
class Nodes:
    """The nodes of an exported graph: name → layer, in their order, and tensor → the node that computes it."""

    layers: Mapping[str, str]
    producers: Mapping[str, str]


@dataclass(frozen=True)
class LayerTime:
    """The time of a layer in a call in milliseconds; `conversions_ms` of it change types or layouts only."""

    layer: str
    ms: float
    conversions_ms: float = 0.0


@dataclass(frozen=True)
class LayerExcess:
    """A layer and how long it takes in a call, in milliseconds, beside the same layer of another artifact.

    `share`: of the time of all kernels that it takes longer by; under a profiler these take longer than a call does without one.
    `conversions_ms`: of `ms`, what changes types or layouts only.
    """

    layer: str
    ms: float
    reference_ms: float
    conversions_ms: float
    share: float


def read_nodes(artifact: Artifact) -> Nodes:
    """Return the nodes of an ONNX artifact, or of the one that an engine was built from; none where it is not there any more."""
    from convnext_deploy.graphs.onnx_io import load_onnx

    path = artifact.main_file if artifact.format == "onnx" else _built_from(artifact)
    try:
        graph = load_onnx(path).graph if path is not None else None
    except ArtifactError:
        graph = None
    if graph is None:
        return Nodes({}, {})
    return Nodes(
        {node.name: layer_of_node(node.name) for node in graph.node},
        {name: node.name for node in graph.node for name in node.output},
    )


def _built_from(artifact: Artifact) -> Path | None:
    place = artifact.lineage[-1].input_paths.get("source") if artifact.lineage else None
    if place is None:
        return None
    return Path(place) if place.endswith(".onnx") else Path(place) / "model.onnx"


def group_by_layer(kernels: Sequence[Kernel], nodes: Nodes) -> tuple[LayerTime, ...]:
    """Return the time of each layer, in the order in which they run.

    A kernel counts for the layer that its name tells: of its MatMul or Conv node, where it is made from several layers. What a
    block computes itself, GELU and the residual sum, counts for the layer before it, with which some runtimes fuse it. A kernel
    without a name counts for the layer that the graph has at its place, and else for that before it, or after it if it prepares
    its input.

    Args:
        kernels: in the order in which they run.
        nodes: of the graph that they were made from.
    """
    named = [_named_layer(kernel, nodes) for kernel in kernels]
    inner = {layer for layer in (*nodes.layers.values(), *filter(None, named)) if layer}
    blocks = {layer for layer in inner if any(other.startswith(f"{layer}.") for other in inner)}
    own = [None if layer in blocks else layer for layer in named]
    order = list(dict.fromkeys(layer for layer in nodes.layers.values() if layer and layer not in blocks))
    pending = [layer for layer in order if layer not in own]  # their kernels have no names
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    before = ""
    for place, kernel in enumerate(kernels):
        after = next((layer for layer in own[place + 1 :] if layer), "")
        layer = own[place] or _place(kernel, named[place], before, after, order, pending)
        before = layer or before
        times[layer or BETWEEN][0] += kernel.ms
        times[layer or BETWEEN][1] += kernel.ms if _is_conversion(kernel) else 0.0
    return tuple(LayerTime(layer, ms, conversions) for layer, (ms, conversions) in times.items())


def _is_conversion(kernel: Kernel) -> bool:
    return bool(_CONVERSION.search(kernel.operator or kernel.name) or kernel.name.startswith("FakeQuantize"))


def _named_layer(kernel: Kernel, nodes: Nodes) -> str | None:
    """Return the layer that a kernel's name, or the nodes that it was made from, tell; None if they tell none or too many."""
    made_from = [name for text in kernel.nodes for name in _node_names(text, nodes)]
    if made_from:
        layers = list(dict.fromkeys(layer for name in made_from if (layer := layer_of_node(name))))
        computing = list(dict.fromkeys(layer_of_node(name) for name in made_from if _MATMUL_OR_CONV.search(name)))
        if len(computing) == 1:
            return computing[0]
        return layers[0] if len(layers) == 1 else None
    found = _node_names(kernel.name, nodes)
    if found:
        return layer_of_node(found[-1]) or None
    if _is_conversion(kernel):
        return None
    tensors = [name for name in nodes.producers if kernel.name == name or kernel.name.startswith(f"{name}_")]
    return layer_of_node(nodes.producers[max(tensors, key=len)]) or None if tensors else None


def _node_names(text: str, nodes: Nodes) -> list[str]:
    """Return the names of nodes in a text, in their order: of known ones, or whatever looks so where none are known."""
    if not nodes.layers:
        return _NODE.findall(text)
    ends: dict[int, str] = {}
    for name in nodes.layers:
        if "/" in name and (start := text.rfind(name)) >= 0:
            end = start + len(name)
            ends[end] = max(ends.get(end, ""), name, key=len)
    # of names that overlap, as those of `Conv` and `Conv_2` do, the longest counts
    kept = [
        end for end, name in ends.items() if not any(end - len(name) >= e - len(n) and end < e for e, n in ends.items())
    ]
    return [ends[end] for end in sorted(kept)]


def _place(kernel: Kernel, named: str | None, before: str, after: str, order: Sequence[str], pending: list[str]) -> str:
    """Return the layer of a kernel by its place between two others; empty where it stands alone."""
    if named:  # it is a block's own
        return before or after
    if _BEFORE.search(kernel.operator) or kernel.name.startswith("FakeQuantize"):
        return after or before
    if not _is_conversion(kernel):
        between = _between(before, after, order)
        if skipped := next((layer for layer in pending if layer in between), None):
            pending.remove(skipped)
            return skipped
    return before or after


def _between(before: str, after: str, order: Sequence[str]) -> Sequence[str]:
    start = order.index(before) + 1 if before in order else 0
    end = order.index(after) if after in order else len(order)
    return order[start:end]


def find_excess(ours: Iterable[LayerTime], reference: Iterable[LayerTime]) -> tuple[LayerExcess, ...]:
    """Return every layer of ours, the one that takes longest beside its reference first."""
    taken, theirs = list(ours), {time.layer: time.ms for time in reference}
    total = sum(time.ms for time in taken) or 1.0
    found = [
        LayerExcess(
            time.layer,
            time.ms,
            theirs.get(time.layer, 0.0),
            time.conversions_ms,
            (time.ms - theirs.get(time.layer, 0.0)) / total,
        )
        for time in taken
    ]
    return tuple(sorted(found, key=lambda layer: -layer.share))
