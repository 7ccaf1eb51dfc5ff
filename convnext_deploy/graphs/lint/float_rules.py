"""Rules for the float part of a graph: norms and activations in pieces, squares that overflow, steps that can be left out."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from convnext_deploy.graphs.compute_nodes import AnalyzedGraph, layer_name, readers_of_result
from convnext_deploy.graphs.lint.rule import EXPORT, Place, Rule, node_label, note, warning
from convnext_deploy.graphs.onnx_view import PAIR, GraphView, attribute

_PASSING = PAIR | {"Cast", "Identity"}
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_COMPUTING = (*_NORMS, "Conv", "ConvTranspose", "MatMul", "Gemm", "Gelu", "Add", "Mul", "Div", "ReduceL2", "ReduceMean")
_GELU_CUBIC = 0.044715  # of the approximation with tanh


@warning(
    "in pieces it is several kernels where one would do, and its squares overflow in FP16",
    f"{EXPORT}; it takes opset 17 or later and torch.nn.functional.layer_norm in the model",
)
def decomposed_layer_norm(graph: AnalyzedGraph) -> Iterator[Place]:
    """A mean, the difference from it, its square and the mean of that."""
    view = graph.view
    for mean in view.of_type("ReduceMean", "GlobalAveragePool"):
        source = view.origin(mean.input[0], _PASSING)
        for difference in view.readers(mean.output[0], _PASSING):
            if difference.op_type != "Sub" or view.origin(difference.input[0], _PASSING) != source:
                continue
            squares = [node for node in view.readers(difference.output[0], _PASSING) if _is_square(view, node)]
            if any(n.op_type == "ReduceMean" for square in squares for n in view.readers(square.output[0], _PASSING)):
                yield difference


@warning(
    "TensorRT has found no INT8 kernel for a linear layer with it and went back to float",
    f"{EXPORT}; it takes opset 20",
)
def decomposed_gelu(graph: AnalyzedGraph) -> Iterator[Place]:
    """The error function, or tanh of the cubic polynomial, as nodes of their own."""
    view = graph.view
    yield from view.of_type("Erf")
    yield from (node for node in view.of_type("Tanh") if _has_gelu_cubic(view, node, steps=8))


@warning(
    "sums of squares, as in GRN and norms, pass 65504 and become infinite",
    "put them between casts to FP32 and back, as the FP16 files of 'convnext-deploy export' have them",
)
def squares_in_fp16(graph: AnalyzedGraph) -> Iterator[Place]:
    """Sums of squares that are accumulated in FP16, as in GRN and in a norm in pieces."""
    view = graph.view
    for node in view.of_type("ReduceL2", "ReduceSumSquare", "ReduceMean", "ReduceSum"):
        if view.type_of(node.input[0]) == TensorProto.FLOAT16:
            source = view.producers.get(view.origin(node.input[0], _PASSING))
            if node.op_type in ("ReduceL2", "ReduceSumSquare") or (source is not None and _is_square(view, source)):
                yield node
    yield from (node for node, inside in _fp16_norms(view) if inside == TensorProto.FLOAT16)


@note(
    "TensorRT 10 computes the norm in FP32, TensorRT 11 may do so in the type of its input",
    "casts to FP32 before and back after the norm cost nothing in the fused kernel; 'convnext-deploy export' writes them",
)
def norm_of_fp16(graph: AnalyzedGraph) -> Iterator[Place]:
    """Norms that read FP16 and ask for FP32 inside."""
    return (node for node, inside in _fp16_norms(graph.view) if inside != TensorProto.FLOAT16)


@warning(
    "strongly typed engines compute the rest in FP32 as the file says: slower than INT8 with FP16",
    "write the rest in FP16: 'convnext-deploy export --precision fp16'",
)
def fp32_beside_int8(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes that compute in FP32 in a graph with INT8 nodes and without FP16."""
    view, halves = graph.view, (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if not graph.int8_nodes or any(view.type_of(name) in halves for node in view.nodes for name in node.output):
        return
    integers = {id(node.proto) for node in graph.int8_nodes}
    for node in view.of_type(*_COMPUTING):
        float32 = view.type_of(node.output[0]) == TensorProto.FLOAT
        if id(node) not in integers and float32 and not view.is_constant(node.output[0]):
            yield node


@warning("TensorRT has no FP64 and narrows it or refuses the file", f"{EXPORT} from a model in float32")
def fp64(graph: AnalyzedGraph) -> Iterator[Place]:
    """Nodes with FP64 results."""
    for node in graph.view.nodes:
        computed = not all(graph.view.is_constant(name) for name in node.output)
        if computed and any(graph.view.type_of(name) == TensorProto.DOUBLE for name in node.output):
            yield node


@note(
    "two layout changes that undo each other are copies in runtimes that do not notice",
    "keep the residual stream in one layout, as 'convnext-deploy export' does",
)
def stray_transposes(graph: AnalyzedGraph) -> Iterator[Place]:
    """Two transposes that undo each other, with only elementwise work between."""
    view = graph.view
    for first in view.of_type("Transpose"):
        if view.is_constant(first.output[0]):
            continue
        node: onnx.NodeProto | None = first
        while node is not None:
            readers = list(view.readers(node.output[0]))
            node = readers[0] if len(readers) == 1 else None
            if node is not None and node.op_type == "Transpose":
                orders = [attribute(n, "perm") for n in (first, node)]
                if None not in orders and [orders[0][i] for i in orders[1]] == list(range(len(orders[0]))):
                    yield f"{node_label(first)} and {node_label(node)}"
                break
            if node is not None and not _is_elementwise(view, node):
                break


@note(
    "one more multiplication over the whole tensor in every block, and in FP16 values near the smallest",
    "'convnext-deploy export' multiplies LayerScale into the weights before it",
)
def layer_scale_not_folded(graph: AnalyzedGraph) -> Iterator[Place]:
    """A multiplication of every channel by a constant right after a linear layer or convolution."""
    view = graph.view
    for source in graph.compute_nodes:
        if source.weight_name is None:
            continue
        for node in readers_of_result(view, source.proto):
            if node.op_type == "Mul":
                factors = [view.shapes.get(name, ()) for name in node.input if view.is_constant(name)]
                if factors and sum(size != 1 for size in factors[0]) == 1:
                    yield layer_name(view, node)


def _fp16_norms(view: GraphView) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Yield the norms that read FP16, each with the type that it asks for inside."""
    for node in view.of_type(*_NORMS):
        if view.type_of(node.input[0]) == TensorProto.FLOAT16:
            yield node, attribute(node, "stash_type", TensorProto.FLOAT)


def _is_square(view: GraphView, node: onnx.NodeProto) -> bool:
    if node.op_type == "Pow":
        exponent = view.array(view.origin(node.input[1], _PASSING))
        # behind a pair the exponent is an integer of some scale
        return exponent is not None and (
            (exponent.size == 1 and float(exponent.item()) == 2.0) or exponent.dtype in (np.int8, np.uint8)
        )
    return node.op_type == "Mul" and view.origin(node.input[0], _PASSING) == view.origin(node.input[1], _PASSING)


def _has_gelu_cubic(view: GraphView, node: onnx.NodeProto, steps: int) -> bool:
    for name in node.input:
        value = view.array(name)
        if value is not None and value.size == 1 and abs(float(value.item()) - _GELU_CUBIC) < 1e-4:
            return True
        if steps and name in view.producers and _has_gelu_cubic(view, view.producers[name], steps - 1):
            return True
    return False


def _is_elementwise(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node does the same to every element, whatever their order."""
    if node.op_type in ("Gelu", "Relu", "Erf", "Tanh", "Sigmoid", "Sqrt", "Cast", "Identity"):
        return True
    scalars = [
        name for name in node.input if (value := view.shapes.get(name)) is not None and all(s == 1 for s in value)
    ]
    if node.op_type in PAIR:
        return all(name in scalars for name in node.input[1:])
    return node.op_type in ("Add", "Sub", "Mul", "Div", "Pow", "Clip") and len(scalars) >= len(node.input) - 1


FLOAT_RULES: tuple[Rule, ...] = (
    decomposed_layer_norm, decomposed_gelu, squares_in_fp16, norm_of_fp16, fp32_beside_int8, fp64, stray_transposes,
    layer_scale_not_folded,
)  # fmt: skip
