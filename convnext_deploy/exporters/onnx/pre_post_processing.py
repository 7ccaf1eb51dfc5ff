"""What stands before and after the network in an exported graph: normalization of pixels, softmax, the largest classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.errors import ExportError
from convnext_deploy.graphs.onnx_io import INPUT_NAME, OUTPUT_NAME, tensor_shape

OUTPUT_NAMES = {"logits": (OUTPUT_NAME,), "probabilities": ("probabilities",), "top-k": ("scores", "classes")}
"""`GraphIO.output` → names of the graph's outputs."""

ENDS = "graph_ends"
"""What the nodes made here carry as the name of their layer. They compute in float32 whatever the rest computes in."""


def add_ends(proto: onnx.ModelProto, io: GraphIO, preprocess: Preprocess) -> onnx.ModelProto:
    """Return the graph with the input and the outputs that `io` asks for.

    Args:
        proto: from `export_float`: normalized `images (N, C, S, S)` to `logits (N, classes)`.
        io: what the graph is to take and give.
        preprocess: its mean and std are what a uint8 graph normalizes with.

    Raises: ExportError: if more classes are asked for than there are.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    item = [*tensor_shape(graph.input[0])[1:]]
    classes = tensor_shape(graph.output[0])[1]
    assert classes is not None  # the exporter knows the number of classes
    if io.output == "top-k" and io.top_k > classes:
        raise ExportError(f"the {io.top_k} largest of {classes} classes were asked for; choose --top-k 1 to {classes}.")
    first = [*_take_pixels(graph, io, preprocess, _batch_dim(graph.input[0]), item)]
    last = [*_give(graph, io, _batch_dim(graph.input[0]), classes)]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _batch_dim(value: onnx.ValueInfoProto) -> int | str:
    dim = value.type.tensor_type.shape.dim[0]
    return int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param)


def _take_pixels(
    graph: onnx.GraphProto, io: GraphIO, preprocess: Preprocess, batch: int | str, item: list[int | None]
) -> list[onnx.NodeProto]:
    if io.input_type == "float32" and io.input_layout == "nchw":
        return []
    nodes, current, inside = [], INPUT_NAME, "normalized_images"
    if io.input_layout == "nhwc":
        nodes.append(_node("Transpose", [current], "images_nchw", perm=[0, 3, 1, 2]))
        current, item = "images_nchw", [*item[1:], item[0]]
    if io.input_type == "uint8":
        # (x / 255 - mean) / std as one product and one sum
        mean, std = (np.array(values, np.float64)[None, :, None, None] for values in (preprocess.mean, preprocess.std))
        scale = _constant(graph, "normalization_scale", 1.0 / (255.0 * std))
        shift = _constant(graph, "normalization_shift", -mean / std)
        nodes += [
            _node("Cast", [current], "pixels", to=TensorProto.FLOAT),
            _node("Mul", ["pixels", scale], "scaled_pixels"),
            _node("Add", ["scaled_pixels", shift], "normalized_pixels"),
        ]
    nodes[-1].output[0] = inside
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == INPUT_NAME:
                node.input[place] = inside
    kind = TensorProto.UINT8 if io.input_type == "uint8" else TensorProto.FLOAT
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT_NAME, kind, [batch, *item]))
    return nodes


def _give(graph: onnx.GraphProto, io: GraphIO, batch: int | str, classes: int) -> list[onnx.NodeProto]:
    if io.output == "logits":
        return []
    names = OUTPUT_NAMES[io.output]
    del graph.output[:]
    if io.output == "probabilities":
        graph.output.append(helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, classes]))
        return [_node("Softmax", [OUTPUT_NAME], names[0], axis=-1)]
    for name, kind in zip(names, (TensorProto.FLOAT, TensorProto.INT64), strict=True):
        graph.output.append(helper.make_tensor_value_info(name, kind, [batch, io.top_k]))
    k = numpy_helper.from_array(np.array([io.top_k], np.int64), "top_k")
    graph.initializer.append(k)
    softmax = _node("Softmax", [OUTPUT_NAME], "all_probabilities", axis=-1)
    largest = helper.make_node("TopK", ["all_probabilities", k.name], names, "TopK", doc_string=ENDS, axis=-1)
    return [softmax, largest]


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], f"{output}_{operator}", doc_string=ENDS, **attributes)


def _constant(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return name
