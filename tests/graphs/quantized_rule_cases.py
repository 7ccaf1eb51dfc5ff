"""Quantized graphs that each break one rule, see `test_rules.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.graphs.others_graphs import (
    CONV,
    GEMM,
    MATMUL,
    PAIR,
    conv,
    gemm,
    graph_of,
    matmul,
    random_weight,
    scales,
    zeros,
)
from tests.graphs.rule_case import Case

HALF = np.float16
BOTH = ("QuantizeLinear_0", "DequantizeLinear_1")
NO_ZERO_POINT = CONV.replace("(x, s, z)", "(x, s)").replace("(q, s, z)", "(q, s)")
BIAS = CONV.replace("y = Conv", "b = DequantizeLinear <axis = 0> (bi, bs, bz) y = Conv").replace("xd, wd", "xd, wd, b")
INT32_BIAS = {"bi": np.ones(4, np.int32), "bs": scales(4), "bz": zeros(4, np.int32)}
SCALE_OF_MAXIMUM = "r = ReduceMax <keepdims = 0> (x) s = Div (r, c) "
TRANSPOSED = MATMUL.replace("y = MatMul (xd, wd)", "wt = Transpose <perm = [1, 0]> (wd) y = MatMul (xd, wt)")
CHANNELS = CONV.replace("QuantizeLinear (", "QuantizeLinear <axis = 1> (")
DEPTHWISE = CONV.replace("pads =", "group = 8, pads =")
FLOAT_WEIGHT = CONV.replace("wd =", "wq = QuantizeLinear <axis = 0> (wf, ws, wz) wd =").replace("(w, ", "(wq, ")
HALF_MATMUL: dict[str, Any] = {
    "x": "float16[batch,6,16]",
    "y": "float16[batch,6,n]",
    "s": scales(dtype=HALF),
    "ws": scales(4, HALF),
}
ERF = "r = Div (bd, root) t = Erf (r) u = Add (t, one) v = Mul (bd, u) y = Mul (v, half)"


def linear(after: str, **changes: Any) -> onnx.ModelProto:
    """Return an INT8 linear layer with a bias, whose result is `b`."""
    body = f"{PAIR} wd = DequantizeLinear <axis = 1> (w, ws, wz) a = MatMul (xd, wd) b = Add (a, bias) {after}"
    return matmul(body, **({"bias": random_weight(4)} | changes))


def rounded(after: str, **changes: Any) -> onnx.ModelProto:
    """Return an INT8 linear layer whose result is rounded to `bd`."""
    return linear(f"bq = QuantizeLinear (b, s, z) bd = DequantizeLinear (bq, s, z) {after}", **changes)


GRID_CASES = (
    Case(
        "integer-operators",
        "dynamic",
        graph_of(
            "q, s, z = DynamicQuantizeLinear (x) i = ConvInteger (q, w, z) y = Cast <to = 1> (i)",
            w=random_weight(4, 8, 1, 1, dtype=np.int8),
        ),
        conv(),
        ("DynamicQuantizeLinear_0", "ConvInteger_1"),
        "refuses",
    ),
    Case("zero-point-not-zero", "int8", conv(z=np.int8(3)), conv(), BOTH, "refuses"),
    Case("zero-point-not-zero", "uint8", conv(z=np.uint8(128)), conv(), BOTH, "refuses"),
    Case("uint8", "zero", conv(z=zeros(dtype=np.uint8)), conv(), BOTH[:1]),
    Case(
        "zero-point-missing",
        "pair",
        conv(NO_ZERO_POINT),
        conv(NO_ZERO_POINT.replace("QuantizeLinear (x", "QuantizeLinear <output_dtype = 3> (x"), opset=21),
        BOTH[:1],
    ),
    Case("bias-int32", "conv", conv(BIAS, **INT32_BIAS), conv(), ("DequantizeLinear_3",), "refuses"),
    Case("wide-integers", "int16", conv(z=zeros(dtype=np.int16), opset=21), conv(), BOTH, "refuses"),
    Case(
        "types-of-newer-gpus",
        "fp8",
        graph_of("q = QuantizeLinear <output_dtype = 17> (x, s) y = DequantizeLinear (q, s)", opset=21, s=scales()),
        conv(),
        BOTH,
    ),
    Case("scale-not-positive", "zero", conv(s=np.float32(0)), conv(), BOTH, "refuses"),
    Case("scale-not-positive", "negative", conv(s=np.float32(-0.1)), conv(), BOTH, "refuses"),
    Case("scale-not-positive", "infinite", conv(s=np.float32(np.inf)), conv(), BOTH),
    Case("scale-lost-in-fp16", "tiny", conv(s=np.float32(2e-8)), conv(s=np.float32(1e-6)), BOTH),
    Case("scale-type", "fp32", matmul(**HALF_MATMUL | {"s": scales()}), matmul(**HALF_MATMUL), BOTH[:1]),
    Case("scale-type", "opset", matmul(**HALF_MATMUL, opset=17), matmul(**HALF_MATMUL), BOTH[:1]),
    Case(
        "scale-computed",
        "maximum",  # the same before a convolution is a segmentation fault in the build of TensorRT-RTX 1.7
        matmul(SCALE_OF_MAXIMUM + MATMUL, c=np.float32(127), s=None),
        matmul(),
        ("QuantizeLinear_2",),
        "float",
    ),
)

LAYER_CASES = (
    Case(
        "weight-axis",
        "conv",
        conv(CONV.replace("axis = 0", "axis = 1"), ws=scales(8), wz=zeros(8)),
        conv(),
        ("Conv_3",),
        "float",
    ),
    Case(
        "weight-axis",
        "matmul",
        matmul(MATMUL.replace("axis = 1", "axis = -2"), ws=scales(16), wz=zeros(16)),
        matmul(MATMUL.replace("axis = 1", "axis = -1")),
        ("MatMul_3",),
        "float",
    ),
    Case(
        "weight-axis",
        "gemm",
        gemm(GEMM.replace("axis = 0", "axis = 1"), ws=scales(16), wz=zeros(16)),
        gemm(),
        ("Gemm_3",),
        "float",
    ),
    Case(
        "weight-axis",
        "transposed",
        matmul(TRANSPOSED, w=random_weight(4, 16, dtype=np.int8), ws=scales(16), wz=zeros(16)),
        matmul(TRANSPOSED.replace("axis = 1", "axis = 0"), w=random_weight(4, 16, dtype=np.int8)),
        ("MatMul_4",),
        "float",
    ),
    Case("weight-scale-per-tensor", "scalar", conv(ws=scales(), wz=zeros()), conv(), ("Conv_3",)),
    Case("weight-scale-per-tensor", "vector-of-one", matmul(ws=scales(1), wz=zeros(1)), matmul(), ("MatMul_3",)),
    Case("activation-scale-per-channel", "conv", conv(CHANNELS, s=scales(8), z=zeros(8)), conv(), ("Conv_3",), "float"),
    Case(
        "activation-scale-per-channel",
        "vector-of-one",
        conv(s=scales(1), z=zeros(1)),
        matmul(s=scales(1), z=zeros(1)),
        ("Conv_3",),
        "float",
    ),
    Case(
        "weight-only",
        "matmul",
        matmul("wd = DequantizeLinear <axis = 1> (w, ws, wz) y = MatMul (x, wd)"),
        matmul(),
        ("MatMul_1",),
        "float",
    ),
    Case(
        "activation-only",
        "matmul",
        matmul(f"{PAIR} y = MatMul (xd, w)", w=random_weight(16, 4)),
        matmul(),
        ("MatMul_2",),
        "float",
    ),
    Case(
        "int8-depthwise",
        "conv",
        conv(DEPTHWISE, w=random_weight(8, 1, 3, 3, dtype=np.int8), ws=scales(8), wz=zeros(8)),
        conv(DEPTHWISE.replace("group = 8", "group = 2"), w=random_weight(4, 4, 3, 3, dtype=np.int8)),
        ("Conv_3",),
    ),
    Case(
        "fp16-result-of-int8",
        "matmul",
        matmul(**HALF_MATMUL),
        matmul(**HALF_MATMUL | {"ws": scales(None, HALF), "wz": zeros()}),
        ("MatMul_3",),
    ),
    Case("weight-kept-as-float", "conv", conv(FLOAT_WEIGHT, w=None, wf=random_weight(4, 8, 3, 3)), conv(), ("Conv_4",)),
)

NUMBERS = {name: np.float32(value) for name, value in {"root": 1.4142135, "one": 1, "half": 0.5}.items()}
PLACEMENT_CASES = (
    Case("pair-before-activation", "gelu", rounded("y = Gelu (bd)"), linear("y = Gelu (b)"), ("MatMul_3",)),
    Case(
        "pair-before-activation",
        "erf",
        rounded(ERF, **NUMBERS),
        rounded("y = Mul (bd, half)", **NUMBERS),
        ("MatMul_3",),
    ),
    Case(
        "pair-before-float-operator",
        "gelu",
        graph_of(f"{PAIR} y = Gelu (xd)", s=scales(), z=zeros()),
        conv(),
        ("Gelu_2",),
    ),
    Case(
        "quantized-sum",
        "one-side",
        matmul(f"{PAIR} y = Add (xd, x)"),
        matmul(f"{PAIR} y = Add (xd, bias)", bias=random_weight(16)),
        ("Add_2",),
    ),
    Case(
        "fp32-beside-int8",
        "gelu",
        linear("y = Gelu (b)"),
        linear("y = Gelu (b)", **HALF_MATMUL, bias=random_weight(4, dtype=HALF)),
        ("Add_4", "Gelu_5"),
    ),
)
