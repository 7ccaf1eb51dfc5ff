"""Exported graphs have no transposes that undo each other, and every layer has its own weights under its name."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.exporters.onnx.cleanup import cancel_transposes, name_weights
from convnext_deploy.exporters.onnx.graph_edits import finish
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.graphs.names import layer_of_node, name_nodes
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import VARIANTS
from tests.exporters.conftest import Network
from tests.shared import heavy_except
from tests.weights import random_network

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, 3, 4, 5])
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", [value], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def edited(model: onnx.ModelProto, edit: Callable[[ir.Graph], None]) -> onnx.ModelProto:
    loaded = ir.from_proto(model)
    edit(loaded.graph)
    return finish(loaded)


def run(model: onnx.ModelProto) -> np.ndarray:
    images = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": images})[0]
    return found


def transpose(source: str, result: str, perm: list[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [result], perm=perm)


def test_transposes_that_undo_each_other_are_gone() -> None:
    nodes = [
        transpose("images", "last", TO_LAST),
        helper.make_node("Relu", ["last"], ["stream"]),
        transpose("last", "first", TO_FIRST),
        helper.make_node("Relu", ["first"], ["branch"]),
        transpose("branch", "back", TO_LAST),
        helper.make_node("Add", ["stream", "back"], ["sum"]),
    ]
    model = graph_of(nodes)
    expected = run(model)
    model = edited(model, cancel_transposes)
    assert [node.op_type for node in model.graph.node] == ["Transpose", "Relu", "Relu", "Transpose", "Add"]
    assert model.graph.node[2].input[0] == "images"
    assert np.array_equal(run(model), expected)


def test_chain_of_transposes_is_gone_and_so_is_what_nobody_reads() -> None:
    nodes = [
        transpose("images", "a", TO_LAST),
        transpose("a", "b", TO_FIRST),
        transpose("b", "c", TO_LAST),
        transpose("c", "d", TO_FIRST),
        helper.make_node("Relu", ["d"], ["e"]),
    ]
    model = graph_of(nodes)
    expected = run(model)
    model = edited(model, cancel_transposes)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    assert np.array_equal(run(model), expected)


def test_other_transposes_stay() -> None:
    nodes = [transpose("images", "a", TO_LAST), transpose("a", "b", TO_LAST), helper.make_node("Relu", ["b"], ["c"])]
    model = graph_of(nodes)
    model = edited(model, cancel_transposes)
    assert [node.op_type for node in model.graph.node] == ["Transpose", "Transpose", "Relu"]


def test_equal_weights_are_shared_no_longer() -> None:
    weight = np.ones((5, 5), np.float32)
    nodes = [
        helper.make_node("MatMul", ["images", "val_1"], ["a"], doc_string="first"),
        helper.make_node("Add", ["a", "bias_of_first"], ["b"], doc_string="first"),
        helper.make_node("MatMul", ["b", "val_1"], ["c"], doc_string="second"),
        helper.make_node("Add", ["c", "first.bias"], ["d"], doc_string="second"),
        helper.make_node("Mul", ["d", "two"], ["e"], doc_string="second"),
    ]
    bias = np.arange(5, dtype=np.float32)
    constants = {"val_1": weight, "bias_of_first": bias, "first.bias": bias, "two": np.array(2.0, np.float32)}
    model = graph_of(nodes, constants)
    expected = run(model)
    model = edited(model, name_weights)
    names = [initializer.name for initializer in model.graph.initializer]
    assert names == ["first.weight", "first.bias", "second.weight", "second.bias", "two"]
    assert np.array_equal(run(model), expected)


def test_one_layer_may_have_several_constants_of_a_kind() -> None:
    nodes = [
        helper.make_node("Add", ["images", "val_1"], ["a"], doc_string="layer"),
        helper.make_node("Add", ["a", "val_2"], ["b"], doc_string="layer"),
    ]
    one = np.arange(5, dtype=np.float32)
    model = graph_of(nodes, {"val_1": one, "val_2": 2 * one})
    expected = run(model)
    model = edited(model, name_weights)
    assert [initializer.name for initializer in model.graph.initializer] == ["layer.bias", "layer.bias_2"]
    assert np.array_equal(run(model), expected)


@pytest.mark.heavy
def test_weights_have_the_names_of_the_parameters(network: Network) -> None:
    parameters = {name for name, _ in network.model.named_parameters()}
    constants = [i for i in network.graph.graph.initializer if i.data_type == TensorProto.FLOAT]
    shapes = {i.name: tuple(i.dims) for i in constants if max(i.dims, default=1) > 1}
    assert shapes.keys() <= parameters
    layers = [name for name, m in network.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert {f"{name}.weight" for name in layers} <= shapes.keys()
    assert shapes["stages.0.0.pwconv1.weight"] == (16, 64)  # MatMul has it transposed


@pytest.mark.parametrize(
    "variant",
    heavy_except(
        ("convnext_tiny_hnf",), ("test_convnext", "convnext_zepto_rms", "convnext_atto_rms", "convnext_tiny_hnf")
    ),
)
def test_graphs_have_few_transposes_and_compute_no_shapes(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        VARIANTS, variant, dataclasses.replace(VARIANTS[variant], depths=(1, 1, 1, 1), dims=(16, 24, 32, 48))
    )
    model = random_network(ModelSpec(variant, 5))
    graph = export_float(model, 3, 32)
    counts = Counter(node.op_type for node in graph.graph.node)
    # to channels-last after the stem, two around each depthwise convolution, two around each downsampling, which the next
    # block's first one undoes
    assert counts["Transpose"] == 1 + 2 * 4 + 2 * 3 - 3
    assert not counts.keys() & {
        "Shape",
        "Reshape",
        "Expand",
        "Concat",
        "Gather",
        "Slice",
        "Unsqueeze",
        "Cast",
        "Identity",
    }


@pytest.mark.heavy
def test_exported_variance_is_that_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    row = VARIANTS["convnext_zepto_rms"]
    monkeypatch.setitem(VARIANTS, "convnext_zepto_rms", dataclasses.replace(row, depths=(0, 1, 0, 0)))
    model = random_network(ModelSpec("convnext_zepto_rms", 5))
    assert isinstance(model, ConvNeXt)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = export_float(model, 3, 32)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    assert np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_name_nodes_gives_every_node_its_own_name_after_its_layer_and_operator() -> None:
    nodes = [
        helper.make_node("Relu", ["images"], ["a"], "x", doc_string="stages.0.0.pwconv1"),
        helper.make_node("Relu", ["a"], ["b"], "x", doc_string="stages.0.0.pwconv1"),
        helper.make_node("Relu", ["b"], ["c"], "x"),
        helper.make_node("Abs", ["c"], ["d"], "x", doc_string="head"),
    ]
    model = graph_of(nodes)
    name_nodes(model.graph)
    names = [node.name for node in model.graph.node]
    assert names == ["stages.0.0.pwconv1/Relu", "stages.0.0.pwconv1/Relu_2", "Relu", "head/Abs"]
    assert [layer_of_node(name) for name in names] == ["stages.0.0.pwconv1", "stages.0.0.pwconv1", "", "head"]
