"""A matrix product of dequantized inputs and its bias become one operator of ONNX Runtime; everything else stays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from convnext_deploy.exporters.onnx.ort_fusion import OPERATOR, fuse_int8_matmuls
from convnext_deploy.graphs.onnx_io import save_onnx

ROWS, INPUTS, OUTPUTS = 5, 7, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, ROWS, INPUTS)).astype(np.float32)
CONSTANTS: dict[str, NDArray[np.generic]] = {
    "scale": np.array(0.02, np.float32),
    "zero": np.array(117, np.uint8),
    "weight": RNG.integers(-128, 128, (INPUTS, OUTPUTS)).astype(np.int8),
    "weight_scale": RNG.uniform(0.001, 0.01, OUTPUTS).astype(np.float32),
    "weight_zero": np.zeros(OUTPUTS, np.int8),
    "bias": RNG.standard_normal(OUTPUTS).astype(np.float32),
    "float_weight": RNG.standard_normal((INPUTS, OUTPUTS)).astype(np.float32),
}
PAIR = (
    helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["integers"]),
    helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["input"]),
    helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["float"], axis=1),
)
PRODUCT = helper.make_node("MatMul", ["input", "float"], ["product"], "layer/MatMul", "layer")


def graph(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("logits",)) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    kind = onnx.TensorProto.FLOAT
    inner = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("images", kind, ["batch", ROWS, INPUTS])],
        [
            helper.make_tensor_value_info(name, kind, ["batch", ROWS, INPUTS if name == "other" else OUTPUTS])
            for name in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items() if name in used],
    )
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def add(*inputs: str, output: str = "logits") -> onnx.NodeProto:
    return helper.make_node("Add", inputs, [output], doc_string="layer")


def run(proto: onnx.ModelProto) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(None, {"images": IMAGES})
    return found


def kinds(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("bias", [("product", "bias"), ("bias", "product")])
def test_product_and_bias_become_one_operator_that_computes_the_same(bias: tuple[str, str], tmp_path: Path) -> None:
    before = graph(*PAIR, PRODUCT, add(*bias))
    after = fuse_int8_matmuls(before)
    assert kinds(after) == {"QuantizeLinear": 1, OPERATOR: 1}
    assert (after.graph.node[1].name, after.graph.node[1].doc_string) == ("layer/MatMul", "layer")
    assert {i.name for i in after.graph.initializer} == set(CONSTANTS) - {"float_weight"}
    assert np.allclose(run(after)[0], run(before)[0], rtol=1e-5, atol=1e-6)
    save_onnx(after, tmp_path / "model.onnx", {})


def test_product_without_bias_and_one_that_others_read_keep_what_follows() -> None:
    alone = graph(*PAIR, helper.make_node("MatMul", ["input", "float"], ["logits"]))
    read_twice = graph(*PAIR, PRODUCT, add("product", "bias"), outputs=("logits", "product"))
    sum_of_values = graph(*PAIR, PRODUCT, add("product", "product"))
    for before, adds in ((alone, 0), (read_twice, 1), (sum_of_values, 1)):
        after = fuse_int8_matmuls(before)
        assert (kinds(after)[OPERATOR], kinds(after)["Add"], kinds(after)["MatMul"]) == (1, adds, 0)
        for found, expected in zip(run(after), run(before), strict=True):
            assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [("input", "float_weight"), ("images", "float")])
def test_product_with_one_float_input_stays(inputs: tuple[str, str]) -> None:
    nodes = PAIR[:2] if inputs[0] == "input" else PAIR[2:]
    before = graph(*nodes, helper.make_node("MatMul", inputs, ["product"]), add("product", "bias"))
    assert fuse_int8_matmuls(before) == before


def test_dequantized_input_that_others_read_as_well_stays() -> None:
    before = graph(
        *PAIR,
        PRODUCT,
        add("product", "bias"),
        helper.make_node("Relu", ["input"], ["other"]),
        outputs=("logits", "other"),
    )
    after = fuse_int8_matmuls(before)
    assert kinds(after) == {"QuantizeLinear": 1, "DequantizeLinear": 1, OPERATOR: 1, "Relu": 1}
    assert np.array_equal(run(after)[1], run(before)[1])
