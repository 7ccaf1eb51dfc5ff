"""Classifiers of any cost, as ONNX files: what the tests of timing time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.pipeline.open_artifact import open_input

SIDE, CLASSES = 4, 3


def write_classifier(path: Path, width: int = 8, layers: int = 1, *, int8: bool = False) -> Artifact:
    """Write a chain of `layers` matrix products of `width` by `width`; in one that says `int8` the first is quantized."""
    values = 3 * SIDE * SIDE
    rng = np.random.default_rng(0)
    sizes = [values, *[width] * layers, CLASSES]
    nodes, weights, last = [helper.make_node("Flatten", ["images"], ["x0"])], [], "x0"
    if int8:
        weights += [
            numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["x0", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        ]
        last = "dq"
    for index, (rows, columns) in enumerate(pairwise(sizes)):
        weight = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(rows**0.5)
        if int8 and index == 0:
            weights.append(numpy_helper.from_array(np.rint(weight / 0.05).clip(-127, 127).astype(np.int8), "integers"))
            nodes.append(helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["w0"]))
        else:
            weights.append(numpy_helper.from_array(weight, f"w{index}"))
        name = "logits" if index == len(sizes) - 2 else f"y{index}"
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [name]))
        last = name
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return open_input(path)
