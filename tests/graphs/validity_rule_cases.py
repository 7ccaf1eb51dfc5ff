"""Graphs that each break one rule for what every runtime asks of a file, see `test_rules.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.graphs.others_graphs import graph_of, random_weight
from tests.graphs.rule_case import Case

PIXELS: dict[str, Any] = {"x": "uint8[batch,8,6,6]"}
RELU = graph_of("y = Relu (x)")
CAST = graph_of("c = Cast <to = 1> (x) y = Relu (c)", **PIXELS)
NORM: dict[str, Any] = {"body": "y = LayerNormalization <axis = -1> (x, g)", "g": np.ones(6, np.float32)}
PRODUCT = "y = MatMul (x, w)"


def reversed_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its nodes the other way round."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.node.reverse()
    return result


def without_type(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with an input of which only the shape is known."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.input[0].type.tensor_type.elem_type = 0
    return result


VALIDITY_CASES = (
    Case(
        "operator-not-in-opset",
        "gelu-17",
        graph_of("y = Gelu (x)", opset=17),
        graph_of("y = Gelu (x)"),
        ("Gelu_0 (Gelu is in the standard from opset 20 on, not in 17)",),
    ),
    Case(
        "operator-not-in-opset",
        "norm-16",
        graph_of(**NORM, opset=16),
        graph_of(**NORM, opset=17),
        ("LayerNormalization_0 (LayerNormalization is in the standard from opset 17 on, not in 16)",),
    ),
    Case(
        "operator-not-in-opset",
        "no-longer",
        graph_of("y = Upsample (x, to)", to=np.array([1, 1, 2, 2], np.float32)),
        graph_of("y = Resize (x, , to)", to=np.array([1, 1, 2, 2], np.float32)),
        ("Upsample_0 (Upsample is in the standard up to opset 9, not in 20)",),
    ),
    Case(
        "operator-not-in-opset",
        "never",
        graph_of("y = Swirl (x)"),
        RELU,
        ("Swirl_0 (Swirl is in no opset)",),
        "refuses",
    ),
    Case("value-nothing-makes", "input", graph_of("y = Add (x, b)"), graph_of("y = Add (x, x)"), ("b of Add_0",)),
    Case("value-nothing-makes", "output", graph_of("z = Relu (x)"), RELU, ("output y",), "refuses"),
    Case(
        "not-sorted",
        "reversed",
        reversed_nodes(graph_of("a = Relu (x) y = Relu (a)")),
        graph_of("a = Relu (x) y = Relu (a)"),
        ("Relu_1",),
    ),
    Case(
        "made-of-itself",
        "circle",
        graph_of("a = Add (x, b) b = Relu (a) y = Relu (b)"),
        graph_of("a = Add (x, x) b = Relu (a) y = Relu (b)"),
        ("Add_0", "Relu_1"),
        "refuses",
    ),
    Case(
        "against-the-standard",
        "no-type",
        without_type(graph_of("y = Cast <to = 1> (x)")),
        RELU,
        ("Invalid tensor data type 0.",),
    ),
    Case(
        "against-the-standard",
        "types",
        graph_of("y = Add (x, b)", b=np.float16(1)),
        graph_of("y = Add (x, b)", b=np.float32(1)),
        ("[ShapeInferenceError] (op_type:Add, node name: Add_0): B has inconsistent type tensor(float16)",),
        "refuses",
    ),
    Case(
        "against-the-standard",
        "shapes",
        graph_of(PRODUCT, w=random_weight(5, 4)),
        graph_of(PRODUCT, w=random_weight(6, 4)),
        (
            "[ShapeInferenceError] Inference error(s): (op_type:MatMul, node name: MatMul_0): [ShapeInferenceError] Incompatible "
            "dimensions for matrix multiplication",
        ),
        "refuses",
    ),
    Case(
        "against-the-standard",
        "attribute",
        graph_of("y = ReduceMean <axes = [1]> (x)", opset=18),
        graph_of("y = ReduceMean <axes = [1]> (x)", opset=17),
        (
            "Unrecognized attribute: axes for operator ReduceMean Bad node spec for node. Name: ReduceMean_0 OpType: ReduceMean",
        ),
    ),
    Case(
        "against-the-standard",
        "inputs",
        graph_of("y = Relu (x, x)"),
        RELU,
        (
            "Node(Relu_0) with schema(::Relu:14) has input size 2 not in range [min=1, max=1]. Bad node spec for node. Name: "
            "Relu_0 OpType: Relu",
        ),
    ),
    Case("input-type", "double", graph_of("y = Cast <to = 1> (x)", x="double[batch,8,6,6]"), CAST, ("x FP64",)),
    Case(
        "input-type",
        "int16",
        graph_of("y = Cast <to = 1> (x)", x="int16[batch,8,6,6]"),
        graph_of("y = Cast <to = 1> (x)", x="float16[batch,8,6,6]"),
        ("x INT16",),
        "refuses",
    ),
    Case(
        "uint8-input-not-cast",
        "transpose",
        graph_of("t = Transpose <perm = [0, 3, 1, 2]> (x) y = Cast <to = 1> (t)", **PIXELS),
        graph_of("c = Cast <to = 1> (x) y = Transpose <perm = [0, 3, 1, 2]> (c)", **PIXELS),
        ("Transpose_0",),
        "refuses",
    ),
    Case(
        "uint8-input-not-cast",
        "dequantize",
        graph_of("y = DequantizeLinear (x, s)", s=np.float32(0.02), **PIXELS),
        graph_of("s = Shape (x) c = Cast <to = 1> (x) y = Reshape (c, s)", **PIXELS),
        ("DequantizeLinear_0",),
        "refuses",
    ),
)
