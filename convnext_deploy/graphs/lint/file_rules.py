"""Rules for the file as a whole: versions, batch, order, and how the weights are kept."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from convnext_deploy.graphs.compute_nodes import INTEGER_OPERATORS, AnalyzedGraph
from convnext_deploy.graphs.lint.rule import EXPORT, Place, Rule, error, node_label, note, warning
from convnext_deploy.graphs.onnx_io import OPSET
from convnext_deploy.graphs.onnx_view import PAIR

_IR_VERSION = 10  # what the newest ONNX of opset 20's time writes, and TensorRT 10.3 was made for
_STANDARD = ("", "ai.onnx")
_SMALL = 2  # elements, below which a tensor is a constant of the formula and no parameter
_SMALLEST_NORMAL = 2.0**-14  # of FP16


@error(
    "TensorRT does not know operators outside the ONNX standard without a plugin",
    "take the file from before ONNX Runtime's graph optimizations, or " + EXPORT,
)
def operators_of_others(graph: AnalyzedGraph) -> Iterator[Place]:
    """Operators that the ONNX standard does not have; for integer ones there is another rule."""
    for node in graph.view.nodes:
        # TensorRT's parser takes an operator by its name, whatever its domain
        integer = node.op_type in INTEGER_OPERATORS or node.op_type.startswith("QLinear")
        if node.domain not in _STANDARD and not onnx.defs.has(node.op_type) and not integer:
            yield f"{node.domain}.{node.op_type} {node_label(node)}"


@error(
    "the ONNX checker and several runtimes refuse nodes that read what comes later",
    "sort the nodes: onnx_ir.passes.common.TopologicalSortPass() on onnx_ir.load(path)",
)
def not_sorted(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes that read what a later node makes."""
    view, made = graph.view, set(graph.view.tensors)
    nodes = view.nodes[: view.top_level] if view.top_level == len(view.nodes) else ()
    for node in nodes:
        if any(name in view.producers and name not in made for name in node.input):
            yield node
        made.update(node.output)


@error(
    "infinity or NaN in a weight makes every result NaN; FP16 ends at 65504",
    "convert from the FP32 model again and keep layers with weights beyond 65504 in FP32",
)
def weights_not_finite(graph: AnalyzedGraph) -> Iterator[Place]:
    """Tensors that hold infinity or no number."""
    for name, tensor in graph.view.tensors.items():
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            values = graph.view.array(name)
            if values is not None and not np.isfinite(values).all():
                yield name


@warning(
    "FP16 made small weights 0 and took digits from their neighbours, often LayerScale before it was folded",
    "fold LayerScale first, as 'convnext-deploy export' does, then convert to FP16",
)
def weights_flushed_to_zero(graph: AnalyzedGraph) -> Iterator[Place]:
    """FP16 tensors with zeros among values so small that FP16 loses digits of them."""
    for name, tensor in graph.view.tensors.items():
        values = graph.view.array(name) if tensor.data_type == TensorProto.FLOAT16 else None
        if values is None or values.size < 2:
            continue
        sizes = np.abs(values.astype(np.float32))
        tiny, zeros = int(((sizes > 0) & (sizes < _SMALLEST_NORMAL)).sum()), int((sizes == 0).sum())
        # one value in a hundred: a normal distribution of the usual width has fewer than one in a thousand that small
        if zeros and tiny and tiny + zeros >= 0.01 * values.size:
            yield name


@warning(
    "the engine runs this one batch size alone",
    f"{EXPORT} and dynamic_shapes for the first dimension; 'convnext-deploy export' freezes it with --fixed-batch-size alone",
)
def frozen_batch(graph: AnalyzedGraph) -> Iterator[Place]:
    """Inputs with a number as their batch, and reshapes to one in a graph whose batch is dynamic."""
    view = graph.view
    batches = set()
    for value in view.inputs:
        shape = view.shapes.get(value.name, ())
        if len(shape) == 4 and isinstance(shape[0], int):
            yield f"input {value.name} {shape}".replace("'", "")
        elif shape and isinstance(shape[0], str):
            batches.add(shape[0])
    for node in view.of_type("Reshape"):
        source, target = view.shapes.get(node.input[0], ()), view.array(node.input[1])
        if source and source[0] in batches and target is not None and target.size and int(target.flat[0]) > 0:
            yield node


@warning("TensorRT 10.3 of JetPack 6 reads up to opset 20", EXPORT)
def opset_after_20(graph: AnalyzedGraph) -> Iterator[Place]:
    """The standard operators in a version that the TensorRT of JetPack 6 does not read."""
    if (found := graph.view.opsets.get("ai.onnx", 0)) > OPSET:
        yield f"opset {found}"


@warning(
    "older runtimes, among them TensorRT 10.3 of JetPack 6, may refuse the file format",
    "set model.ir_version = 10 and save again, or use 'convnext-deploy export'",
)
def ir_after_10(graph: AnalyzedGraph) -> Iterator[Place]:
    """A file format newer than that of the operators' time."""
    if (found := graph.view.model.ir_version) > _IR_VERSION:
        yield f"IR {found}"


@note(
    "tools that rewrite one layer change the other or skip it, as quantize_static does with shared biases",
    "give every layer its own copy; 'convnext-deploy export' does",
)
def shared_parameters(graph: AnalyzedGraph) -> Iterator[Place]:
    """Float parameters that several nodes read, directly or under a second name."""
    view, uses = graph.view, Counter[str]()
    for node in view.nodes:
        if node.op_type != "Identity" or not view.is_constant(node.input[0]):
            # scales and zero points belong to both nodes of a pair
            names = node.input[:1] if node.op_type in PAIR else node.input
            uses.update({view.origin(name, {"Identity"}) for name in names})
    for name, tensor in view.tensors.items():
        parameter = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        if parameter and math.prod(tensor.dims) >= _SMALL and uses[name] > 1:
            yield name


@note(
    "the ONNX file alone is not the model, and parsers that are given its bytes do not find the rest",
    "copy the files together and give TensorRT the path, or save in one file: onnx.save(model, path) below 2 GB",
)
def weights_beside_the_file(graph: AnalyzedGraph) -> Iterator[Place]:
    """Files that hold weights of this one."""
    found = {
        entry.value
        for tensor in graph.view.tensors.values()
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    yield from sorted(found)


FILE_RULES: tuple[Rule, ...] = (
    operators_of_others, not_sorted, weights_not_finite, weights_flushed_to_zero, frozen_batch, opset_after_20,
    ir_after_10, shared_parameters, weights_beside_the_file,
)  # fmt: skip
