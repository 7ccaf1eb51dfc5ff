"""Graphs that each break one rule for float parts or for files as a whole, see `test_rules.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.graphs.others_graphs import conv, graph_of, random_weight
from tests.graphs.rule_case import Case

HALF = np.float16
FLOATS: dict[str, Any] = {"x": "float[batch,6,16]", "y": "float[batch,6,n]"}
HALVES: dict[str, Any] = {"x": "float16[batch,6,16]", "y": "float16[batch,6,n]"}
NORM = "y = LayerNormalization (x, g)"
LAYER_NORM = (
    "m = ReduceMean <keepdims = 1> (x, axes) d = Sub (x, m) {square} v = ReduceMean <keepdims = 1> (d2, axes) "
    "e = Add (v, eps) r = Sqrt (e) y = Div (d, r)"
)
ERF = "a = Div (x, root) b = Erf (a) c = Add (b, one) e = Mul (x, c) y = Mul (e, half)"
TANH = (
    "a = Pow (x, three) b = Mul (a, k) c = Add (x, b) e = Mul (c, root) f = Tanh (e) g = Add (f, one) h = Mul (x, g) "
    "y = Mul (h, half)"
)
AXES: dict[str, Any] = {"axes": np.array([-1]), "eps": np.float32(1e-6)}
NUMBERS: dict[str, Any] = {
    name: np.float32(value)
    for name, value in {"root": 1.4142135, "one": 1, "half": 0.5, "three": 3, "two": 2, "k": 0.044715}.items()
}
THERE, BACK = "a = Transpose <perm = [0, 2, 3, 1]> (x)", "y = Transpose <perm = [0, 3, 1, 2]> (b)"
PRODUCT = "y = MatMul (x, w)"


def layer_norm(square: str, **changes: Any) -> onnx.ModelProto:
    """Return a norm in pieces."""
    return graph_of(LAYER_NORM.format(square=square), **(FLOATS | AXES | NUMBERS | changes))


def linear(body: str, **changes: Any) -> onnx.ModelProto:
    """Return a graph with the weight `w` of a linear layer of 16 to 4 features."""
    return graph_of(body, **({"w": random_weight(16, 4), **FLOATS} | changes))


def with_batch(model: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """Return the model with another first dimension of its input."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 8, 6, 6))
    result.graph.input[0].CopyFrom(value)
    return result


FLOAT_CASES = (
    Case(
        "decomposed-layer-norm",
        "pow",
        layer_norm("d2 = Pow (d, two)"),
        graph_of(NORM, g=random_weight(16), **FLOATS),
        ("Sub_1",),
    ),
    Case("decomposed-layer-norm", "mul", layer_norm("d2 = Mul (d, d)"), layer_norm("d2 = Mul (d, x)"), ("Sub_1",)),
    Case("decomposed-gelu", "erf", graph_of(ERF, **NUMBERS), graph_of("y = Gelu (x)"), ("Erf_1",)),
    Case("decomposed-gelu", "tanh", graph_of(TANH, **NUMBERS), graph_of("y = Tanh (x)"), ("Tanh_4",)),
    Case(
        "squares-in-fp16",
        "grn",
        graph_of("y = ReduceL2 (x, axes)", **HALVES, axes=np.array([1])),
        graph_of("f = Cast <to = 1> (x) r = ReduceL2 (f, i) y = Cast <to = 10> (r)", **HALVES, i=np.array([1])),
        ("ReduceL2_0",),
    ),
    Case(
        "squares-in-fp16",
        "norm",
        layer_norm("d2 = Pow (d, two)", **HALVES, two=HALF(2), eps=HALF(1e-6)),
        layer_norm("d2 = Pow (d, two)"),
        ("ReduceMean_3",),
    ),
    Case(
        "squares-in-fp16",
        "stash",
        graph_of("y = LayerNormalization <stash_type = 10> (x, g)", g=random_weight(16, dtype=HALF), **HALVES),
        graph_of("y = LayerNormalization <stash_type = 1> (x, g)", g=random_weight(16, dtype=HALF), **HALVES),
        ("LayerNormalization_0",),
    ),
    Case(
        "norm-of-fp16",
        "default",
        graph_of(NORM, g=random_weight(16, dtype=HALF), **HALVES),
        graph_of(NORM, g=random_weight(16), **FLOATS),
        ("LayerNormalization_0",),
    ),
    Case(
        "fp64",
        "product",
        graph_of("a = Cast <to = 11> (x) b = Mul (a, a) y = Cast <to = 1> (b)"),
        graph_of("y = Mul (x, x)"),
        ("Cast_0", "Mul_1"),
    ),
    Case(
        "stray-transposes",
        "gelu",
        graph_of(f"{THERE} b = Gelu (a) {BACK}"),
        graph_of(f"{THERE} b = MatMul (a, w) {BACK}", w=random_weight(8, 4)),
        ("Transpose_0 and Transpose_2",),
    ),
    Case(
        "layer-scale-not-folded",
        "bias",
        linear("a = MatMul (x, w) b = Add (a, c) y = Mul (b, g)", c=random_weight(4), g=random_weight(4)),
        linear("a = MatMul (x, w) b = Gelu (a) y = Mul (b, g)", g=random_weight(4)),
        ("Mul_2",),
    ),
)

FILE_CASES = (
    Case(
        "weights-not-finite",
        "fp16",
        linear(PRODUCT, w=np.full((16, 4), np.inf, HALF), **HALVES),
        linear(PRODUCT),
        ("w",),
    ),
    Case("weights-not-finite", "nan", linear(PRODUCT, w=np.full((16, 4), np.nan, np.float32)), linear(PRODUCT), ("w",)),
    Case(
        "weights-flushed-to-zero",
        "fp16",
        linear(PRODUCT, w=(1e-6 * random_weight(16, 4)).astype(HALF), **HALVES),
        linear(PRODUCT, w=random_weight(16, 4, dtype=HALF), **HALVES),
        ("w",),
    ),
    Case(
        "operators-of-others",
        "fast-gelu",
        graph_of("y = com.microsoft.FastGelu (x)"),
        graph_of("y = com.microsoft.Gelu (x)"),
        ("com.microsoft.FastGelu FastGelu_0",),
        "refuses",
    ),
    Case("frozen-batch", "input", with_batch(conv(), 1), with_batch(conv(), "n"), ("input x (1, 8, 6, 6)",)),
    Case(
        "frozen-batch",
        "reshape",
        graph_of("y = Reshape (x, to)", to=np.array([2, -1]), y="float[n,m]"),
        graph_of("y = Reshape (x, to)", to=np.array([0, -1]), y="float[n,m]"),
        ("Reshape_0",),
    ),
    Case("opset-after-20", "21", graph_of("y = Relu (x)", opset=21), graph_of("y = Relu (x)"), ("opset 21",)),
    Case("ir-after-10", "11", graph_of("y = Relu (x)", ir=11), graph_of("y = Relu (x)"), ("IR 11",)),
    Case(
        "shared-parameters",
        "second-name",
        graph_of("a = Add (x, b) c = Identity (b) y = Add (a, c)", b=random_weight(6)),
        graph_of("a = Add (x, b) y = Add (a, c)", b=random_weight(6), c=random_weight(6)),
        ("b",),
    ),
)
