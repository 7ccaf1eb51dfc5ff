"""Rules for the file as a whole: versions, batch, order, and how the weights are kept."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import INTEGER_OPERATORS, AnalyzedGraph, node_label
from convnext_deploy.graphs.lint.rule import EXPORT, Place, Rule, error, note, warning
from convnext_deploy.graphs.onnx_io import OPSET
from convnext_deploy.graphs.onnx_view import PAIR, array, external_tensors, inputs_of, origin, shape_of

_IR_VERSION = 10  # what the newest ONNX of opset 20's time writes, and TensorRT 10.3 was made for
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
        if node.domain and not onnx.defs.has(node.op_type) and not integer:
            yield f"{node.domain}.{node.op_type} {node_label(node)}"


@error(
    "infinity or NaN in a weight makes every result NaN; FP16 ends at 65504",
    "convert from the FP32 model again and keep layers with weights beyond 65504 in FP32",
)
def weights_not_finite(graph: AnalyzedGraph) -> Iterator[Place]:
    """Tensors that hold infinity or no number."""
    for value in graph.view.tensors:
        if value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
            values = array(value)
            if values is not None and not np.isfinite(values).all():
                yield str(value.name)


@warning(
    "FP16 made small weights 0 and took digits from their neighbours, often LayerScale before it was folded",
    "fold LayerScale first, as 'convnext-deploy export' does, then convert to FP16",
)
def weights_flushed_to_zero(graph: AnalyzedGraph) -> Iterator[Place]:
    """FP16 tensors with zeros among values so small that FP16 loses digits of them."""
    for value in graph.view.tensors:
        values = array(value) if value.dtype == ir.DataType.FLOAT16 else None
        if values is None or values.size < 2:
            continue
        sizes = np.abs(values.astype(np.float32))
        tiny, zeros = int(((sizes > 0) & (sizes < _SMALLEST_NORMAL)).sum()), int((sizes == 0).sum())
        # one value in a hundred: a normal distribution of the usual width has fewer than one in a thousand that small
        if zeros and tiny and tiny + zeros >= 0.01 * values.size:
            yield str(value.name)


@warning(
    "the engine runs this one batch size alone",
    f"{EXPORT} and dynamic_shapes for the first dimension; 'convnext-deploy export' freezes it with --fixed-batch-size alone",
)
def frozen_batch(graph: AnalyzedGraph) -> Iterator[Place]:
    """Inputs with a number as their batch, and reshapes to one in a graph whose batch is dynamic."""
    batches = set()
    for value in graph.view.inputs:
        shape = shape_of(value)
        if len(shape) == 4 and isinstance(shape[0], int):
            yield f"input {value.name} {shape}".replace("'", "")
        elif shape and isinstance(shape[0], str):
            batches.add(shape[0])
    for node in graph.view.of_type("Reshape"):
        source, target = inputs_of(node)[:2]
        shape, sizes = shape_of(source), array(target)
        if shape and shape[0] in batches and sizes is not None and sizes.size and int(sizes.flat[0]) > 0:
            yield node


@warning("TensorRT 10.3 of JetPack 6 reads up to opset 20", EXPORT)
def opset_after_20(graph: AnalyzedGraph) -> Iterator[Place]:
    """The standard operators in a version that the TensorRT of JetPack 6 does not read."""
    if (found := graph.view.model.opset_imports.get("", 0)) > OPSET:
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
    uses = Counter[ir.Value]()
    for node in graph.view.nodes:
        if node.op_type != "Identity" or not graph.view.is_constant(node.inputs[0]):
            # scales and zero points belong to both nodes of a pair
            values = inputs_of(node)[:1] if node.op_type in PAIR else inputs_of(node)
            uses.update({origin(value, {"Identity"}) for value in values})
    for value in graph.view.tensors:
        parameter = value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        if parameter and value.const_value is not None and value.const_value.size >= _SMALL and uses[value] > 1:
            yield str(value.name)


@note(
    "the ONNX file alone is not the model, and parsers that are given its bytes do not find the rest",
    "copy the files together and give TensorRT the path, or save in one file: onnx.save(model, path) below 2 GB",
)
def weights_beside_the_file(graph: AnalyzedGraph) -> Iterator[Place]:
    """Files that hold weights of this one."""
    yield from sorted({str(tensor.location) for tensor in external_tensors(graph.view.model)})


FILE_RULES: tuple[Rule, ...] = (
    operators_of_others, weights_not_finite, weights_flushed_to_zero, frozen_batch, opset_after_20,
    ir_after_10, shared_parameters, weights_beside_the_file,
)  # fmt: skip
