"""The smallest graph that asks for INT8 or FP8: one product with its Q/DQ pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_product(
    folder: Path,
    operator: str,
    *,
    axis: int | None = None,
    dtype: type[np.generic] = np.float32,
    name: str = "node_1",
    width: int = 32,
    levels: type[np.generic] = np.int8,
) -> Path:
    """Write a graph of one product of `levels`: `Conv` on `(batch, 16, 8, 8)`, or `MatMul` on `(batch, 4, width)`."""
    rng = np.random.default_rng(0)
    shape = (16, 16, 2, 2) if operator == "Conv" else (width, width)
    if axis is None:
        axis = 0 if operator == "Conv" else 1
    weights = {
        "layer.weight": rng.integers(-127, 128, shape).astype(levels),
        "w_scale": np.full(shape[axis], 0.01, dtype),
        "w_zero": np.zeros(shape[axis], levels),
        "scale": np.array(0.05, dtype),
        "zero": np.array(0, levels),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["layer.weight", "w_scale", "w_zero"], ["w"], axis=axis),
        helper.make_node(operator, ["d", "w"], ["logits"], name),
    ]
    kind = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
    sizes: dict[str, tuple[list[str | int], list[str | int]]] = {
        "Conv": (["batch", 16, 8, 8], ["batch", 16, 7, 7]),
        "MatMul": (["batch", 4, width], ["batch", 4, width]),
    }
    taken, given = sizes[operator]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", kind, taken)],
        [helper.make_tensor_value_info("logits", kind, given)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
