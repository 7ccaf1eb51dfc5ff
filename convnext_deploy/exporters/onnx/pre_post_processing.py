"""Add pre- and post-processing to an exported graph: normalization of pixels before it, softmax and the top classes after it."""

import numpy as np
import onnx
import onnx_ir as ir

from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.config.onnx import check_top_k
from convnext_deploy.exporters.onnx.graph_edits import add_constant, finish
from convnext_deploy.graphs.names import OUTPUT_NAMES
from convnext_deploy.graphs.onnx_io import tensor_shape

ENDS = "graph_ends"
"""What the nodes made here carry as the name of their layer. They compute in float32 whatever the rest computes in."""


def add_ends(
    proto: onnx.ModelProto, io: GraphIO, preprocess: Preprocess, *, multi_label: bool = False
) -> onnx.ModelProto:
    """Return the graph with the input and the outputs that `io` asks for.

    Args:
        proto: from `export_float`: normalized `images (N, C, S, S)` to `logits (N, classes)`, or to features.
        io: what the graph is to take and give.
        preprocess: its mean and std are what a graph that takes pixels normalizes with.
        multi_label: each logit is an answer of its own, whose probability is its sigmoid.

    Raises: ExportError: if the best of such answers, or more classes are asked for than there are.
    """
    model = ir.from_proto(proto)
    graph = model.graph
    classes = tensor_shape(proto.graph.output[0])[1]
    assert classes is not None  # the exporter knows the number of classes
    if io.output == "top-k":
        check_top_k(io.top_k, classes, multi_label=multi_label)
    if not io.takes_usual_images:
        _take_pixels(graph, io, preprocess)
    if io.gives_features:
        graph.outputs[0].name = OUTPUT_NAMES[io.output][0]
    elif io.output != "logits":
        _give(graph, io, "Sigmoid" if multi_label else "Softmax")
    return finish(model)


def _take_pixels(graph: ir.Graph, io: GraphIO, preprocess: Preprocess) -> None:
    images = graph.inputs[0]
    images.name = io.input_name
    steps: list[tuple[str, list[ir.Value], dict[str, int | list[int]]]] = []
    if io.input_type == "uint8":
        images.dtype = ir.DataType.UINT8
        steps.append(("Cast", [], {"to": ir.DataType.FLOAT}))  # first: TensorRT does nothing else with uint8
    if io.input_layout == "nhwc":
        assert images.shape is not None  # the exporter knows it
        batch, *item = images.shape
        images.shape = ir.Shape([batch, *item[1:], item[0]])
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if io.white is not None:
        # (x / white - mean) / std as one product and one sum
        mean, std = (np.array(values, np.float64)[None, :, None, None] for values in (preprocess.mean, preprocess.std))
        factors = (1.0 / (io.white * std)).astype(np.float32)
        if (factors != 1.0).any():
            steps.append(("Mul", [add_constant(graph, "normalization_scale", factors)], {}))
        if mean.any():
            shift = add_constant(graph, "normalization_shift", (-mean / std).astype(np.float32))
            steps.append(("Add", [shift], {}))
    readers, value = [(use.node, use.idx) for use in images.uses()], images
    for number, (operator, constants, attributes) in enumerate(steps, 1):
        result = ir.val("normalized_images" if number == len(steps) else f"images_{operator}")
        node = ir.node(operator, [value, *constants], attributes, outputs=[result], doc_string=ENDS)
        graph.insert_before(graph[number - 1], node)
        value = result
    for reader, place in readers:
        reader.replace_input_with(place, value)


def _give(graph: ir.Graph, io: GraphIO, operator: str) -> None:
    logits, names = graph.outputs[0], OUTPUT_NAMES[io.output]
    assert logits.shape is not None  # the exporter knows it
    probabilities = ir.val(
        names[0] if io.output == "probabilities" else "all_probabilities", logits.dtype, logits.shape
    )
    attributes = {"axis": -1} if operator == "Softmax" else {}
    graph.append(ir.node(operator, [logits], attributes, outputs=[probabilities], doc_string=ENDS))
    graph.outputs[:] = [probabilities]
    if io.output == "top-k":
        k = add_constant(graph, "top_k", np.array([io.top_k], np.int64))
        kinds = (ir.DataType.FLOAT, ir.DataType.INT64)
        shape = ir.Shape([logits.shape[0], io.top_k])
        graph.outputs[:] = [ir.val(name, kind, shape) for name, kind in zip(names, kinds, strict=True)]
        graph.append(ir.node("TopK", [probabilities, k], {"axis": -1}, outputs=[*graph.outputs], doc_string=ENDS))
