"""Edits of graphs in onnx-ir that all writers share: new constants, values that replace others, no dead nodes at the end."""

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from convnext_deploy.errors import ExportError, first_line


def finish(model: ir.Model) -> onnx.ModelProto:
    """Return a model in the form of its file, without nodes and constants that nobody reads."""
    RemoveUnusedNodesPass()(model)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # whoever needs types infers them
    return proto


def infer_types(proto: onnx.ModelProto) -> ir.Model:
    """Return a graph with the types and shapes of all its values.

    Raises: ExportError: if they cannot be inferred.
    """
    try:
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the types of the graph cannot be inferred: {first_line(error)}") from error


def add_constant(graph: ir.Graph, name: str, values: NDArray[np.generic]) -> ir.Value:
    """Add a constant of the type and shape of `values`."""
    # np.array and not np.ascontiguousarray, which would make the scalars 1-D: TensorRT-RTX then computes a convolution in float
    constant = ir.val(name, const_value=ir.tensor(np.array(values, order="C"), name=name))
    graph.register_initializer(constant)
    return constant


def put_in_place_of(value: ir.Value, new_name: str) -> ir.Value:
    """Return a new value that takes the name of `value`, its readers and its place among the outputs; `value` is renamed."""
    result = ir.val(value.name, value.dtype, value.shape)
    value.replace_all_uses_with(result, replace_graph_outputs=True)
    value.name = new_name
    return result
