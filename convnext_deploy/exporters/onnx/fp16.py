"""Convert a float32 graph to FP16, with FP32 islands where FP16 would overflow, as strongly typed TensorRT runs it.

In FP32 stay: the norms, GRN and the pooling, which sum squares or many values; softmax and the normalization of pixels; what is
too large or too small for FP16, by measured ranges and by the weights themselves; and for TensorRT-RTX the INT8 and FP8 matrix
products with a scale per channel, whose sums of levels it would otherwise write as FP16 before it scales them: two levels of FP8,
up to 448 each, give more than FP16 holds. A large tensor costs nothing more for it: the casts are part of the kernels beside them.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.errors import ExportError, first_line
from convnext_deploy.exporters.onnx.graph_edits import add_constant, finish, infer_types, put_in_place_of
from convnext_deploy.exporters.onnx.pre_post_processing import ENDS

LARGEST = float(np.finfo(np.float16).max) / 4
"""Activations that were measured to be larger stay in FP32; the factor is for images that were not measured."""
SMALLEST = float(np.finfo(np.float16).tiny)
"""Smaller numbers lose digits in FP16 (2⁻¹⁴); below 2⁻²⁴ they are 0."""

_WIDE_OPERATORS = frozenset({"LayerNormalization", "ReduceMean", "ReduceL2", "ReduceSum", "Softmax", "TopK"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

Islands = dict[str, str]
"""First output of a node that stays in FP32 → why."""


def find_islands(
    proto: onnx.ModelProto, wide_layers: Collection[str], ranges: Mapping[str, float], *, int8_matmuls: bool
) -> Islands:
    """Return which nodes of a float32 graph stay in FP32.

    Args:
        proto: its nodes carry the names of their layers in `doc_string`.
        wide_layers: names of the layers that sum squares.
        ranges: tensor → largest absolute value seen, from `measure_ranges`.
        int8_matmuls: keep INT8 and FP8 matrix products with weight scales by channel in FP32 as well, for TensorRT-RTX; why is
            then `int8` or `fp8`.
    """
    constants = {initializer.name: initializer for initializer in proto.graph.initializer}
    quantized = {node.doc_string for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    sums = {*wide_layers, ENDS}
    islands: Islands = {}
    whole_layers: dict[str, str] = {}
    for node in proto.graph.node:
        reason = None
        if node.doc_string in sums or node.op_type in _WIDE_OPERATORS:
            reason = "sums"
        elif not all(_in_range(ranges.get(name, 0.0)) for name in (*node.input, *node.output)):
            reason = "range"
        elif not all(_fits(constants[name], node.doc_string in quantized) for name in node.input if name in constants):
            reason = "constants"
        if reason is not None:
            islands[node.output[0]] = reason
            if node.doc_string in quantized:
                whole_layers[node.doc_string] = reason
    if int8_matmuls:
        whole_layers |= _matmuls_by_channel(proto, constants)
    for node in proto.graph.node:
        # a layer with its bias and its Q/DQ pairs computes in one type
        if node.doc_string in whole_layers:
            islands.setdefault(node.output[0], whole_layers[node.doc_string])
    return islands


def _in_range(largest: float) -> bool:
    return largest == 0.0 or SMALLEST <= largest <= LARGEST


def _fits(constant: onnx.TensorProto, is_quantized: bool) -> bool:
    """Whether FP16 holds a constant, `is_quantized`: of a layer with Q/DQ pairs."""
    if constant.data_type != TensorProto.FLOAT:
        return True
    largest = float(np.abs(numpy_helper.to_array(constant)).max(initial=0.0))
    if constant.name.endswith("_scale"):  # each of the scales divides or multiplies alone
        return bool(numpy_helper.to_array(constant).min() >= SMALLEST) and largest <= LARGEST
    if is_quantized and len(constant.dims) == 1:  # digits that a small bias loses are below the steps of these scales
        return largest <= LARGEST
    return _in_range(largest)


def _matmuls_by_channel(proto: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> dict[str, str]:
    """Return the layers of matrix products with weight scales by channel → `int8` or `fp8`."""
    by_channel = {
        node.output[0]: "fp8" if constants[node.input[0]].data_type == TensorProto.FLOAT8E4M3FN else "int8"
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and node.input[1] in constants
        and constants[node.input[1]].dims
    }
    return {
        node.doc_string: by_channel[name]
        for node in proto.graph.node
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input
        if name in by_channel
    }


def to_half(proto: onnx.ModelProto, islands: Collection[str]) -> onnx.ModelProto:
    """Return the graph in FP16 except for the islands, with float32 inputs and outputs as before.

    Every tensor has one type, that of the node that makes it; a cast stands before the first node that needs another one.

    Raises: ExportError: if the types of the graph cannot be inferred.
    """
    model = infer_types(proto)
    graph = model.graph
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in graph:
        wanted = ir.DataType.FLOAT if node.outputs[0].name in islands else ir.DataType.FLOAT16
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype not in _FLOATS or value.dtype == wanted:
                continue
            if (value, wanted) not in made:
                made[value, wanted] = _convert(graph, value, wanted, node)
            node.replace_input_with(place, made[value, wanted])
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = wanted
    for value in graph.outputs:
        if value.dtype == ir.DataType.FLOAT16:
            result = put_in_place_of(value, f"{value.name}_fp16")
            result.dtype = ir.DataType.FLOAT
            graph.append(ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, outputs=[result], doc_string=ENDS))
    return finish(model)


def _convert(graph: ir.Graph, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
    """Return a value in another type: a constant as a new one, what is computed by a cast before its first reader."""
    name = f"{value.name}_{'fp32' if wanted == ir.DataType.FLOAT else 'fp16'}"
    if value.const_value is not None:
        return add_constant(graph, name, value.const_value.numpy().astype(np.float16))
    result = ir.val(name, wanted)
    graph.insert_before(
        reader, ir.node("Cast", [value], {"to": wanted}, outputs=[result], doc_string=reader.doc_string)
    )
    return result


def measure_ranges(proto: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """Return the largest absolute value of every float tensor that the graph computes, over all images.

    Args:
        proto: from `export_float`.
        batches: normalized images `(N, C, S, S)`.

    Raises: ExportError: if a value is not finite, or ONNX Runtime does not run the graph.
    """
    import onnxruntime

    inferred = onnx.shape_inference.infer_shapes(proto)
    measured = onnx.ModelProto()
    measured.CopyFrom(proto)
    graph, places = measured.graph, {}
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            largest = f"{value.name}/largest"
            graph.node.append(helper.make_node("Abs", [value.name], [f"{value.name}/abs"]))
            graph.node.append(helper.make_node("ReduceMax", [f"{value.name}/abs"], [largest], keepdims=0))
            places[largest] = value.name
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in places)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    found = np.zeros(len(places))
    try:
        session = onnxruntime.InferenceSession(measured.SerializeToString(), options, ["CPUExecutionProvider"])
        for images in batches:
            values = session.run(list(places), {graph.input[0].name: images})
            found = np.maximum(found, [float(value) for value in values])
    except Exception as error:
        # ONNX Runtime raises classes of its C++ module that have no common public base
        raise ExportError(f"ONNX Runtime cannot run the exported graph: {first_line(error)}") from error
    if not np.isfinite(found).all():
        first = next(name for name, value in zip(places.values(), found, strict=True) if not np.isfinite(value))
        raise ExportError(f"'{first}' is not finite in FP32 already; the network is unusable.")
    return dict(zip(places.values(), found.tolist(), strict=True))
