"""INT8 graphs: the exact integers and scales, and the same answers as PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.quantization.fake_quantize import quantize
from convnext_deploy.quantization.prepare import ActivationGrid, QuantizedSite, quantized_layers
from convnext_deploy.quantization.scheme import TensorScheme
from convnext_deploy.runners import open_runner
from tests.exporters.conftest import Network, QuantizedExport, structured_images
from tests.exporters.qdq_graph import Graph, quantized_products
from tests.exporters.test_onnx_float import run_onnx


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
