"""Rules for the float part of a graph: norms and activations in pieces, squares that overflow, steps that can be left out."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph, layer_name, node_label, readers_of_result
from convnext_deploy.graphs.lint.rule import EXPORT, Place, Rule, note, warning
from convnext_deploy.graphs.onnx_view import PAIR, GraphView, array, attribute, inputs_of, origin, readers, shape_of

_PASSING = PAIR | {"Cast", "Identity"}
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_COMPUTING = (*_NORMS, "Conv", "ConvTranspose", "MatMul", "Gemm", "Gelu", "Add", "Mul", "Div", "ReduceL2", "ReduceMean")
_GELU_CUBIC = 0.044715  # of the approximation with tanh
_HALF = ir.DataType.FLOAT16


@warning(
    "in pieces it is several kernels where one would do, and its squares overflow in FP16",
    f"{EXPORT}; it takes opset 17 or later and torch.nn.functional.layer_norm in the model",
)
def decomposed_layer_norm(graph: AnalyzedGraph) -> Iterator[Place]:
    """A mean, the difference from it, its square and the mean of that."""
    for mean in graph.view.of_type("ReduceMean", "GlobalAveragePool"):
        source = origin(inputs_of(mean)[0], _PASSING)
        for difference in readers(mean.outputs[0], _PASSING):
            if difference.op_type != "Sub" or origin(inputs_of(difference)[0], _PASSING) is not source:
                continue
            squares = [node for node in readers(difference.outputs[0], _PASSING) if _is_square(node)]
            if any(node.op_type == "ReduceMean" for square in squares for node in readers(square.outputs[0], _PASSING)):
                yield difference


@warning(
    "TensorRT has found no INT8 kernel for a linear layer with it and went back to float",
    f"{EXPORT}; it takes opset 20",
)
def decomposed_gelu(graph: AnalyzedGraph) -> Iterator[Place]:
    """The error function, or tanh of the cubic polynomial, as nodes of their own."""
    yield from graph.view.of_type("Erf")
    yield from (node for node in graph.view.of_type("Tanh") if _has_gelu_cubic(node, steps=8))


@warning(
    "sums of squares, as in GRN and norms, pass 65504 and become infinite",
    "put them between casts to FP32 and back, as the FP16 files of 'convnext-deploy export' have them",
)
def squares_in_fp16(graph: AnalyzedGraph) -> Iterator[Place]:
    """Sums of squares that are accumulated in FP16, as in GRN and in a norm in pieces."""
    for node in graph.view.of_type("ReduceL2", "ReduceSumSquare", "ReduceMean", "ReduceSum"):
        if inputs_of(node)[0].dtype == _HALF:
            source = origin(inputs_of(node)[0], _PASSING).producer()
            if node.op_type in ("ReduceL2", "ReduceSumSquare") or (source is not None and _is_square(source)):
                yield node
    yield from (node for node, inside in _fp16_norms(graph.view) if inside == _HALF)


@note(
    "TensorRT 10 computes the norm in FP32, TensorRT 11 may do so in the type of its input",
    "casts to FP32 before and back after the norm cost nothing in the fused kernel; 'convnext-deploy export' writes them",
)
def norm_of_fp16(graph: AnalyzedGraph) -> Iterator[Place]:
    """Norms that read FP16 and ask for FP32 inside."""
    return (node for node, inside in _fp16_norms(graph.view) if inside != _HALF)


@warning(
    "strongly typed engines compute the rest in FP32 as the file says: slower than 8 bits with FP16",
    "write the rest in FP16: 'convnext-deploy export --precision fp16'",
)
def fp32_beside_int8(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes that compute in FP32 in a graph with INT8 or FP8 nodes and without FP16."""
    integers, halves = [node.node for node in graph.quantized_nodes], (_HALF, ir.DataType.BFLOAT16)
    if not integers or any(value.dtype in halves for node in graph.view.nodes for value in node.outputs):
        return
    for node in graph.view.of_type(*_COMPUTING):
        result = node.outputs[0]
        if node not in integers and result.dtype == ir.DataType.FLOAT and not graph.view.is_constant(result):
            yield node


@warning("TensorRT has no FP64 and narrows it or refuses the file", f"{EXPORT} from a model in float32")
def fp64(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes with FP64 results."""
    for node in graph.view.nodes:
        computed = not all(map(graph.view.is_constant, node.outputs))
        if computed and any(value.dtype == ir.DataType.DOUBLE for value in node.outputs):
            yield node


@note(
    "two layout changes that undo each other are copies in runtimes that do not notice",
    "keep the residual stream in one layout, as 'convnext-deploy export' does",
)
def stray_transposes(graph: AnalyzedGraph) -> Iterator[Place]:
    """Two transposes that undo each other, with only elementwise work between."""
    for first in graph.view.of_type("Transpose"):
        node: ir.Node | None = None if graph.view.is_constant(first.outputs[0]) else first
        while node is not None:
            consumers = node.outputs[0].consumers()
            node = consumers[0] if len(consumers) == 1 else None
            if node is not None and node.op_type == "Transpose":
                orders = [attribute(n, "perm") for n in (first, node)]
                if None not in orders and [orders[0][i] for i in orders[1]] == list(range(len(orders[0]))):
                    yield f"{node_label(first)} and {node_label(node)}"
                break
            if node is not None and not _is_elementwise(node):
                break


@note(
    "one more multiplication over the whole tensor in every block, and in FP16 values near the smallest",
    "'convnext-deploy export' multiplies LayerScale into the weights before it",
)
def layer_scale_not_folded(graph: AnalyzedGraph) -> Iterator[Place]:
    """A multiplication of every channel by a constant right after a linear layer or convolution."""
    for source in graph.compute_nodes:
        for node in readers_of_result(graph.view, source.node) if source.weight is not None else ():
            factors = [shape_of(value) for value in node.inputs if graph.view.is_constant(value)]
            if node.op_type == "Mul" and factors and sum(size != 1 for size in factors[0]) == 1:
                yield layer_name(graph.view, node)


def _fp16_norms(view: GraphView) -> Iterator[tuple[ir.Node, int]]:
    """Yield the norms that read FP16, each with the type that it asks for inside."""
    for node in view.of_type(*_NORMS):
        if inputs_of(node)[0].dtype == _HALF:
            yield node, attribute(node, "stash_type", ir.DataType.FLOAT)


def _is_square(node: ir.Node) -> bool:
    if node.op_type not in ("Pow", "Mul"):
        return False
    first, second = (origin(value, _PASSING) for value in inputs_of(node))
    if node.op_type == "Mul":
        return first is second
    exponent = array(second)
    # behind a pair the exponent is an integer of some scale
    return exponent is not None and (
        exponent.dtype in (np.int8, np.uint8) or (exponent.size == 1 and float(exponent.item()) == 2.0)
    )


def _has_gelu_cubic(node: ir.Node, steps: int) -> bool:
    for value in inputs_of(node):
        found, maker = array(value), value.producer()
        if found is not None and found.size == 1 and abs(float(found.item()) - _GELU_CUBIC) < 1e-4:
            return True
        if steps and maker is not None and _has_gelu_cubic(maker, steps - 1):
            return True
    return False


def _is_elementwise(node: ir.Node) -> bool:
    """Whether a node does the same to every element, whatever their order."""
    if node.op_type in ("Gelu", "Relu", "Erf", "Tanh", "Sigmoid", "Sqrt", "Cast", "Identity"):
        return True
    inputs = inputs_of(node)
    scalars = [value for value in inputs if value.shape is not None and all(size == 1 for size in value.shape)]
    if node.op_type in PAIR:
        return all(value in scalars for value in inputs[1:])
    return node.op_type in ("Add", "Sub", "Mul", "Div", "Pow", "Clip") and len(scalars) >= len(node.inputs) - 1


FLOAT_RULES: tuple[Rule, ...] = (
    decomposed_layer_norm, decomposed_gelu, squares_in_fp16, norm_of_fp16, fp32_beside_int8, fp64, stray_transposes,
    layer_scale_not_folded,
)  # fmt: skip
