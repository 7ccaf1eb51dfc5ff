"""INT8 graphs: the rules that TensorRT's explicit quantization asks for, the exact integers, and the same answers as PyTorch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.quantization.fake_quantize import quantize
from convnext_deploy.quantization.prepare import ActivationGrid, QuantizedSite, quantized_layers
from convnext_deploy.quantization.scheme import TensorScheme, resolve_scheme
from convnext_deploy.runners import open_runner
from tests.exporters.conftest import Network, QuantizedExport, structured_images
from tests.exporters.test_onnx_float import run_onnx

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


def site_count(model: nn.Module) -> int:
    """Return how many layers of a network the scheme quantizes."""
    scheme = resolve_scheme("tensorrt")
    return sum(
        scheme.is_site(name) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    )


def test_insert_qdq_quantizes_as_many_products_as_the_scheme_has_sites(export: QuantizedExport) -> None:
    count = len(list(quantized_products(Graph(export.graph))))
    assert count == site_count(export.model) == len(export.sites)


def test_insert_qdq_writes_no_pair_that_feeds_no_product(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    products = list(quantized_products(graph))
    assert len(graph.of_type("QuantizeLinear")) == len(products)
    assert len(graph.of_type("DequantizeLinear")) == 2 * len(products)


def test_insert_qdq_leaves_depthwise_convolutions_stem_and_head_in_float(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    (output,) = export.graph.graph.output
    kept = [n for n in graph.of_type("Conv") if (attribute(n, "group") or 1) > 1 or n.input[0] == "images"]
    kept += [n for n in graph.of_type("Gemm", "MatMul") if n.output[0] == output.name]
    depthwise = sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in export.model.modules())
    assert len(kept) == depthwise + 2
    for node in kept:
        assert not graph.comes_from_dq(node.input[0])
        assert graph.values[node.input[1]].data_type == TensorProto.FLOAT


def test_insert_qdq_writes_int8_zero_points_of_zero(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        assert len(node.input) == 3, f"{node.name} has no zero point: ONNX then takes it for uint8"
        assert graph.values[node.input[2]].data_type == TensorProto.INT8
        assert not graph.array(node.input[2]).any()
        assert graph.array(node.input[2]).shape == graph.array(node.input[1]).shape


def test_insert_qdq_writes_positive_float_scales(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        scale = graph.array(node.input[1])
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert np.isfinite(scale).all()


def test_insert_qdq_gives_activations_one_scalar_scale(export: QuantizedExport) -> None:
    # A scale of shape (1,) is not the same: TensorRT takes it for per-channel and silently computes the Conv in float.
    graph = Graph(export.graph)
    for product in quantized_products(graph):
        assert product.quantize.input[1:] == product.dequantize.input[1:]
        assert graph.array(product.quantize.input[1]).shape == ()


def test_insert_qdq_gives_weights_a_scale_per_output_channel_on_the_axis_that_tensorrt_reads(
    export: QuantizedExport,
) -> None:
    graph = Graph(export.graph)
    for product in quantized_products(graph):
        node, dequantize = product.node, product.dequantize_weight
        weight = graph.array(dequantize.input[0])
        axis = WEIGHT_AXIS[node.op_type]
        assert weight.dtype == np.int8
        assert attribute(dequantize, "axis") == axis
        assert graph.array(dequantize.input[1]).shape == (weight.shape[axis],)
        assert node.op_type != "Gemm" or attribute(node, "transB") == 1


def test_insert_qdq_keeps_biases_in_float(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    for product in quantized_products(graph):
        biases = list(product.node.input[2:])
        if product.node.op_type == "MatMul":
            (add,) = (n for n in graph.of_type("Add") if product.node.output[0] in n.input)
            biases = [name for name in add.input if name in graph.values]
        assert len(biases) == 1
        assert graph.values[biases[0]].data_type == TensorProto.FLOAT


def test_insert_qdq_writes_no_integer_operators_and_no_other_integer_types(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    forbidden = ("QLinear", "DynamicQuantize", "MatMulInteger", "ConvInteger")
    assert [node.op_type for node in graph.nodes if node.op_type.startswith(forbidden) or node.domain] == []
    assert not any(attribute(node, "output_dtype") for node in graph.of_type("QuantizeLinear"))
    quantized = {name for node in graph.of_type("QuantizeLinear", "DequantizeLinear") for name in node.input}
    for name, tensor in graph.values.items():
        assert tensor.data_type not in (TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32)
        assert tensor.data_type != TensorProto.INT8 or name in quantized


def test_insert_qdq_keeps_opset_20_and_at_most_ir_10(export: QuantizedExport) -> None:
    assert [(opset.domain, opset.version) for opset in export.graph.opset_import] == [("", 20)]
    assert export.graph.ir_version <= 10


def test_insert_qdq_uses_every_weight_once_and_leaves_nothing_unused(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    products = list(quantized_products(graph))
    weights = [p.dequantize_weight.input[0] for p in products]
    assert len(set(weights)) == len(weights)
    assert all(graph.uses[name] == 1 for name in weights)
    assert [name for name in graph.values if graph.uses[name] == 0] == []
    assert len(graph.values) == len(export.graph.graph.initializer)  # no name twice


def test_insert_qdq_sorts_nodes_topologically(export: QuantizedExport) -> None:
    known = {value.name for value in export.graph.graph.input} | {t.name for t in export.graph.graph.initializer}
    for node in export.graph.graph.node:
        assert set(node.input) - {""} <= known, f"{node.name} comes before its inputs"
        known |= set(node.output)


def test_insert_qdq_passes_the_full_checker(export: QuantizedExport) -> None:
    onnx.checker.check_model(export.graph, full_check=True)


def test_insert_qdq_writes_the_integers_and_scales_of_the_sites_exactly(export: QuantizedExport) -> None:
    graph = Graph(export.graph)

    def key(weight: NDArray[np.int8], weight_scale: NDArray[np.float32], input_scale: NDArray[np.float32]) -> object:
        return weight.shape, weight.tobytes(), weight_scale.tobytes(), input_scale.tobytes()

    found = []
    for product in quantized_products(graph):
        weight = graph.array(product.dequantize_weight.input[0]).astype(np.int8)
        weight = weight.T if product.node.op_type == "MatMul" else weight
        scales = [
            graph.array(node.input[1]).astype(np.float32) for node in (product.dequantize_weight, product.quantize)
        ]
        found.append(key(weight, *scales))
    expected = [key(site.weight, site.weight_scale, site.input.scale) for site in export.sites.values()]
    assert len(set(expected)) == len(expected)
    assert set(found) == set(expected)


@torch.no_grad()
def test_insert_qdq_weights_dequantize_to_those_that_pytorch_computes_with(export: QuantizedExport) -> None:
    graph = Graph(export.graph)
    found = set()
    for product in quantized_products(graph):
        weight, scale = (graph.array(name).astype(np.float32) for name in product.dequantize_weight.input[:2])
        real = weight.T * scale[:, None] if product.node.op_type == "MatMul" else weight * scale[:, None, None, None]
        found.add(real.tobytes())
    assert found == {
        layer.weight_quantizer(layer.weight).numpy().tobytes() for _, layer in quantized_layers(export.model)
    }


def test_insert_qdq_does_not_change_the_float_graph(network: Network) -> None:
    before = network.graph.SerializeToString(deterministic=True)
    insert_qdq(network.graph, network.quantized.sites)
    assert network.graph.SerializeToString(deterministic=True) == before


def test_insert_qdq_returns_the_float_graph_when_there_are_no_sites(networks: dict[str, Network]) -> None:
    assert insert_qdq(networks["v1"].graph, {}) == networks["v1"].graph


def test_insert_qdq_raises_when_a_site_is_not_in_the_graph(networks: dict[str, Network]) -> None:
    site = next(iter(networks["v1"].quantized.sites.values()))
    with pytest.raises(ExportError, match=r"^[^\n]*stages\.9\.0\.pwconv1[^\n]*$"):
        insert_qdq(networks["v1"].graph, {**networks["v1"].quantized.sites, "stages.9.0.pwconv1": site})


def test_insert_qdq_raises_when_a_weight_has_another_shape(networks: dict[str, Network]) -> None:
    sites = dict(networks["v1"].quantized.sites)
    sites["stages.0.0.pwconv1"] = sites["stages.1.0.pwconv1"]
    with pytest.raises(ExportError, match=r"stages\.0\.0\.pwconv1' has shape \(16, 64\)[^\n]*\(32, 128\)"):
        insert_qdq(networks["v1"].graph, sites)


def test_insert_qdq_raises_when_the_weight_is_computed_in_the_graph(networks: dict[str, Network]) -> None:
    graph = copy.deepcopy(networks["v1"].graph)
    (node,) = (n for n in graph.graph.node if n.doc_string == "stages.0.0.pwconv1" and n.op_type == "MatMul")
    graph.graph.node.insert(0, helper.make_node("Identity", [node.input[1]], ["computed"]))
    node.input[1] = "computed"
    with pytest.raises(ExportError, match=r"stages\.0\.0\.pwconv1"):
        insert_qdq(graph, networks["v1"].quantized.sites)


@torch.inference_mode()
def test_int8_graph_agrees_with_the_fake_quantized_network(network: Network) -> None:
    images = network.images(400, seed=3)
    expected = network.quantized.model(torch.from_numpy(images)).numpy()
    found = run_onnx(network.quantized_path, images)
    assert len(set(expected.argmax(axis=1))) >= 3  # the network tells the images apart
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.995
    # Float noise may move a value across a rounding boundary; that must stay far below what quantization itself changes.
    quantization_error = np.abs(network.model(torch.from_numpy(images)).numpy() - expected).mean()
    assert np.abs(found - expected).mean() <= 0.2 * quantization_error
    assert np.abs(found - expected).max() <= 0.05 * np.ptp(expected)


@torch.inference_mode()
def test_int8_file_of_the_small_run_agrees_with_the_fake_quantized_network(
    small_artifacts: dict[str, Artifact], small_quantized: QuantizedExport
) -> None:
    images = structured_images(300, 3, 32)
    expected = small_quantized.model(torch.from_numpy(images)).numpy()
    found = open_runner(small_artifacts["onnx-int8"]).logits(images)
    assert len(set(expected.argmax(axis=1))) >= 2
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.995
    assert np.abs(found - expected).max() <= 0.05 * np.ptp(expected)


@dataclass(frozen=True)
class SingleProduct:
    """A graph of one product, its site, and the images to run."""

    graph: onnx.ModelProto
    site: QuantizedSite
    images: NDArray[np.float32]

    def expected(self) -> NDArray[np.float64]:
        """Compute the quantized product in exact integers."""
        site = self.site
        ends, zero_point = np.iinfo(site.input.zero_point.dtype), int(site.input.zero_point)
        integers = np.clip(np.rint(self.images / site.input.scale) + zero_point, ends.min, ends.max).astype(np.int64)
        integers -= zero_point
        sums = integers.reshape(len(integers), -1) @ site.weight.reshape(len(site.weight), -1).T.astype(np.int64)
        products: NDArray[np.float64] = sums * np.float64(site.input.scale) * site.weight_scale.astype(np.float64)
        return products


@st.composite
def single_products(draw: st.DrawFn) -> SingleProduct:
    """Draw a product of any kind with any integers and scales."""
    kind = draw(st.sampled_from(["MatMul", "Gemm", "Conv"]))
    rows, inputs, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tail = (2, 2) if kind == "Conv" else ()
    exponents = st.floats(-12, 4, width=32)
    input_scale = np.float32(2.0 ** draw(exponents))
    weight_scale = (2.0 ** rng.uniform(-12, 4, outputs)).astype(np.float32)
    weight = rng.integers(-128, 128, (outputs, inputs, *tail)).astype(np.int8)
    # Symmetric as for TensorRT, or with any zero point of either type.
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(["int8", "uint8"])))
    ends = np.iinfo(dtype)
    zero_point = np.array(draw(st.just(0) | st.integers(int(ends.min), int(ends.max))), dtype)
    # Beyond the grid on both sides, and exactly on the boundaries between two steps.
    images = (rng.integers(-400, 401, (rows, inputs, *tail)) / 2 * input_scale).astype(np.float32)
    site = QuantizedSite(weight, weight_scale, ActivationGrid(np.array(input_scale), zero_point))
    stored = rng.standard_normal(weight.T.shape if kind == "MatMul" else weight.shape).astype(np.float32)
    attributes: dict[str, Any] = {"transB": 1} if kind == "Gemm" else {}
    node = helper.make_node(kind, ["images", "w"], ["logits"], "product", doc_string="layer", **attributes)
    graph = helper.make_graph(
        [node],
        "single",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", inputs, *tail])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs, *(1 for _ in tail)])],
        [numpy_helper.from_array(stored, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return SingleProduct(model, site, images)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(case=single_products())
def test_insert_qdq_makes_any_product_compute_in_its_integers(case: SingleProduct) -> None:
    model = insert_qdq(case.graph, {"layer": case.site})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"images": case.images})[0].reshape(len(case.images), -1)
    expected = case.expected()
    size = np.abs(expected).max(axis=0) + 1e-30
    assert (np.abs(found - expected) <= 1e-5 * size + 1e-6 * case.site.input.scale * case.site.weight_scale).all()
    (product,) = quantized_products(Graph(model))
    stored = Graph(model).array(product.dequantize_weight.input[0])
    assert np.array_equal(stored.T if product.node.op_type == "MatMul" else stored, case.site.weight)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_onnxruntime_quantizes_to_the_same_integers_as_pytorch(data: st.DataObject) -> None:
    signed, count = data.draw(st.booleans()), 64
    scheme = TensorScheme(-128, 127, False, False) if signed else TensorScheme(0, 255, False, False)
    zero_point = data.draw(st.integers(scheme.quant_min, scheme.quant_max))
    scale = np.float32(2.0 ** data.draw(st.floats(-14, 6, width=32)))
    halves = np.arange(-count, count, dtype=np.float32) / 2
    noise = np.random.default_rng(zero_point + 128).normal(0, 200, count).astype(np.float32)
    x = np.concatenate([halves, noise]) * scale
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(x)])],
        [helper.make_tensor_value_info("y", TensorProto.INT8 if signed else TensorProto.UINT8, [len(x)])],
        [
            numpy_helper.from_array(np.array(scale), "s"),
            numpy_helper.from_array(np.array(zero_point, scheme.dtype), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0]
    expected = quantize(torch.from_numpy(x), torch.tensor(scale), torch.tensor(zero_point), scheme).numpy()
    assert np.array_equal(found.astype(np.float32), expected)


def test_quantized_file_is_smaller_than_the_float_file(small_artifacts: dict[str, Artifact]) -> None:
    sizes = {name: Path(small_artifacts[name].main_file).stat().st_size for name in ("onnx-fp32", "onnx-int8")}
    assert sizes["onnx-int8"] < 0.4 * sizes["onnx-fp32"]
