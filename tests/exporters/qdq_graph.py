"""Look-ups in INT8 graphs: their quantized products, and what feeds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

WEIGHT_AXIS = {"MatMul": 1, "Conv": 0, "Gemm": 0}


class Graph:
    """Look-ups in a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.values = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.uses = Counter(name for node in self.nodes for name in node.input)

    def array(self, name: str) -> NDArray[Any]:
        """Return the values of an initializer."""
        values: NDArray[Any] = numpy_helper.to_array(self.values[name])
        return values

    def of_type(self, *types: str) -> list[onnx.NodeProto]:
        """Return the nodes of some operators."""
        return [node for node in self.nodes if node.op_type in types]

    def comes_from_dq(self, name: str) -> bool:
        """Whether a value is the output of DequantizeLinear."""
        return name in self.producer and self.producer[name].op_type == "DequantizeLinear"


@dataclass(frozen=True)
class Product:
    """A quantized product and what feeds it."""

    node: onnx.NodeProto
    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto
    dequantize_weight: onnx.NodeProto


def quantized_products(graph: Graph) -> Iterator[Product]:
    """Yield the products of which an input is dequantized; both inputs must be."""
    for node in graph.of_type(*WEIGHT_AXIS):
        if any(graph.comes_from_dq(name) for name in node.input):
            assert graph.comes_from_dq(node.input[0]), f"{node.name}: the activation is not dequantized"
            assert graph.comes_from_dq(node.input[1]), f"{node.name}: the weight is not dequantized"
            dequantize = graph.producer[node.input[0]]
            quantize = graph.producer[dequantize.input[0]]
            assert quantize.op_type == "QuantizeLinear"
            yield Product(node, quantize, dequantize, graph.producer[node.input[1]])


def attribute(node: onnx.NodeProto, name: str) -> int | None:
    """Return an integer attribute, None where it is not given."""
    return next((int(a.i) for a in node.attribute if a.name == name), None)
