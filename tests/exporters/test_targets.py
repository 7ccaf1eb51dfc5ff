"""Every target goes the whole way: its pairs are where its scheme says, and ONNX Runtime computes what PyTorch computes."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from convnext_deploy.artifact import Artifact
from convnext_deploy.exporters.onnx_float import export_float
from convnext_deploy.exporters.qdq import insert_qdq
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.network import load_network
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import (
    QuantizedSite,
    activation_quantizers,
    prepare,
    quantizers_disabled,
    read_sites,
    without_quantizers,
)
from convnext_deploy.quantization.scheme import SCHEMES, QuantizationScheme, resolve_scheme
from tests.exporters.conftest import structured_images
from tests.exporters.test_variants import CASES, SIDE, build, logits_of

# v1 with an overlapping stem and LayerScale, v2 with GRN, RMS norms, a hidden layer in the head.
VARIANTS = ("convnext_atto_ols", "v2-patch-2", "convnext_atto_rms", "hidden")
TARGETS = tuple(SCHEMES)
EVERYTHING = {"stages.*.pwconv1": "int8-output", "stages.*.pwconv2": "int8-output", "head": "int8-output"}


@dataclass(frozen=True)
class Exported:
    """A network in float and quantized, its sites and its graph."""

    model: ConvNeXt
    quantized: ConvNeXt
    sites: dict[str, QuantizedSite]
    graph: onnx.ModelProto
    channels: int
    scheme: QuantizationScheme


def export_quantized(model: ConvNeXt, scheme: QuantizationScheme, channels: int, side: int = SIDE) -> Exported:
    quantized = prepare(copy.deepcopy(model), scheme)
    calibrate(quantized, [torch.from_numpy(structured_images(64, channels, side, seed=1))], "minmax")
    sites = read_sites(quantized)
    graph = insert_qdq(export_float(without_quantizers(quantized), channels, side), sites)
    return Exported(model, quantized, sites, graph, channels, scheme)


@cache
def export(name: str, target: str, *, everything: bool = False) -> Exported:
    spec = CASES[name]
    model = build(spec, torch.from_numpy(structured_images(64, spec.in_channels, SIDE, seed=1)))
    return export_quantized(model, resolve_scheme(target, EVERYTHING if everything else None), spec.in_channels)


@pytest.fixture(params=[(name, target) for name in VARIANTS for target in TARGETS], ids="-".join)
def exported(request: pytest.FixtureRequest) -> Exported:
    return export(*request.param)


def run(
    graph: onnx.ModelProto, images: NDArray[np.float32], *, optimize: bool = True, dump: Path | None = None
) -> NDArray[np.float32]:
    """Return the logits of ONNX Runtime, with its graph optimizations or without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"images": images})[0]
    return found


def check_agreement(exported: Exported, *, optimize: bool) -> None:
    images = structured_images(200, exported.channels, SIDE, seed=2)
    expected, floats = logits_of(exported.quantized, images), logits_of(exported.model, images)
    found = run(exported.graph, images, optimize=optimize)
    # Float noise moves a few values across a rounding boundary; that must stay far below what quantization itself changes. These
    # random networks hardly prefer one class to another, so some answers change too.
    assert np.abs(found - expected).mean() <= 0.2 * np.abs(floats - expected).mean()
    assert len(set(expected.argmax(axis=1))) >= 3
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.96


@pytest.mark.parametrize("target", TARGETS)
def test_trained_network_answers_the_same_in_onnxruntime(target: str, small_artifacts: dict[str, Artifact]) -> None:
    model = load_network(small_artifacts["student"])
    exported = export_quantized(model, resolve_scheme(target), 3, side=32)
    images = structured_images(400, 3, 32, seed=4)
    expected = logits_of(exported.quantized, images)
    assert len(set(expected.argmax(axis=1))) >= 2
    for optimize in (True, False):
        found = run(exported.graph, images, optimize=optimize)
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.995
        assert np.abs(found - expected).max() <= 0.05 * np.ptp(expected)


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as-written"])
def test_onnxruntime_computes_what_the_fake_quantized_network_does(exported: Exported, optimize: bool) -> None:
    check_agreement(exported, optimize=optimize)


@pytest.mark.parametrize("target", TARGETS)
def test_onnxruntime_agrees_when_every_output_is_quantized(target: str) -> None:
    found = export("v2-patch-2", target, everything=True)
    assert found.sites["head"].output is not None
    check_agreement(found, optimize=True)
    check_agreement(found, optimize=False)


def initializers(graph: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def pairs(graph: onnx.ModelProto) -> dict[str, str]:
    """Return every pair by place, such as `head.input` → the tensor that it reads; both nodes must have the same grid."""
    values = initializers(graph)
    dequantize = {n.input[0]: n for n in graph.graph.node if n.op_type == "DequantizeLinear"}
    found = {}
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            assert node.input[1:] == dequantize[node.output[0]].input[1:]
            assert values[node.input[1]].shape == values[node.input[2]].shape == ()
            found[node.name.removesuffix("_q")] = node.input[0]
    return found


def test_graph_has_exactly_the_pairs_of_the_scheme(exported: Exported) -> None:
    onnx.checker.check_model(exported.graph, full_check=True)
    assert exported.graph.opset_import[0].version == 20
    layers = {name for name, module in exported.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    chosen = exported.scheme.select(layers)
    assert chosen.keys() == exported.sites.keys()
    expected = {f"{name}.input" for name in chosen}
    expected |= {f"{name}.output" for name, layer in chosen.items() if layer.output is not None}
    found = pairs(exported.graph)
    assert found.keys() == expected
    kinds = Counter(node.op_type for node in exported.graph.graph.node)
    assert kinds["DequantizeLinear"] == len(expected) + len(chosen)
    producers = {name: node for node in exported.graph.graph.node for name in node.output}
    values = initializers(exported.graph)
    dtype = np.dtype(exported.scheme.activation.dtype)
    for place, source in found.items():
        name, _, side = place.rpartition(".")
        zero_point = values[f"{place}_zero_point"]
        assert zero_point.dtype == dtype
        if side == "output":
            assert producers[source].doc_string == name, "nothing of another layer comes between"
    for name in chosen:
        assert values[f"{name}.weight_quantized"].dtype == values[f"{name}.weight_zero_point"].dtype == np.int8
        assert not values[f"{name}.weight_zero_point"].any()


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-depthwise"])
def test_graph_for_tensorrt_has_no_unsigned_type_and_no_zero_point(target: str) -> None:
    graph = export("v2-patch-2", target).graph
    for name, value in initializers(graph).items():
        assert value.dtype in (np.dtype(np.float32), np.dtype(np.int8), np.dtype(np.int64)), name
        assert not name.endswith("zero_point") or not value.any()


@pytest.mark.parametrize("name", ["convnext_atto_rms", "v2-patch-2"])
def test_onnxruntime_fuses_every_product_of_its_scheme(name: str, tmp_path: Path) -> None:
    exported = export(name, "onnxruntime")
    run(exported.graph, structured_images(1, exported.channels, SIDE), dump=tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    convolutions = sum(site.weight.ndim == 4 for site in exported.sites.values())
    assert kinds["QLinearConv"] == convolutions
    assert kinds["Conv"] == 0
    assert kinds["MatMulIntegerToFloat"] == len(exported.sites) - convolutions
    assert kinds["MatMul"] == 0
    assert kinds["DequantizeLinear"] == convolutions, "every convolution gives back float once"
    assert kinds["Transpose"] <= 1, "all but the first cancel"


@pytest.mark.parametrize("target", TARGETS)
def test_overrides_reach_the_graph(target: str) -> None:
    model = export("v2-patch-2", target).model
    overrides = {"stages.3.*": "float", "head": "int8", "stages.0.0.dwconv": "int8-output"}
    found = export_quantized(model, resolve_scheme(target, overrides), 3)
    places = pairs(found.graph)
    assert not any(place.startswith("stages.3.") for place in places)
    assert {"head.input", "stages.0.0.dwconv.input", "stages.0.0.dwconv.output"} <= places.keys()
    assert "head.output" not in places
    check_agreement(found, optimize=True)


class Single(nn.Module):
    """One convolution as a network."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=groups)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(N, 6, H, W)` to `(N, 6 * H * W)`."""
        output: Tensor = self.conv(images)
        return output.flatten(1)


@pytest.mark.parametrize("groups", [1, 6], ids=["dense", "depthwise"])
@pytest.mark.parametrize("target", ["tensorrt-depthwise", "onnxruntime"])
@pytest.mark.parametrize("case", ["usual", "dead-weight", "zero-input", "both"])
@torch.no_grad()
def test_single_convolution_gives_the_same_integers_when_channels_are_dead(case: str, target: str, groups: int) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = Single(groups).eval()
        images = torch.randn(16, 6, 12, 12)
    network.conv.bias.copy_(torch.linspace(-1.5, 1.2, 6))  # type: ignore[union-attr]  # it has one
    if case in ("dead-weight", "both"):
        network.conv.weight[:3] = 0
    if case in ("zero-input", "both"):
        images.zero_()
    grid = SCHEMES[target].activation
    scheme = QuantizationScheme("one", (("conv", "int8-output"),), grid, SCHEMES[target].weight)
    quantized = prepare(copy.deepcopy(network), scheme)
    calibrate(quantized, [images], "minmax")
    sites = read_sites(quantized)
    graph = insert_qdq(export_float(network, 6, 12), sites)
    expected = quantized(images).numpy()
    output = sites["conv"].output
    assert output is not None
    for optimize in (True, False):
        steps = np.rint((run(graph, images.numpy(), optimize=optimize) - expected) / output.scale)
        assert np.abs(steps).max() <= 1
        assert (steps != 0).mean() <= 1e-4  # rounding ties
    # A dead channel still has its bias.
    assert np.abs(network(images).numpy() - expected).max() <= 3 * output.scale


@torch.no_grad()
def test_bias_is_rounded_only_while_all_quantizers_of_its_layer_work() -> None:
    target = SCHEMES["openvino"]
    scheme = QuantizationScheme("one", (("conv", "int8-output"),), target.activation, target.weight)
    network = Single(1).eval()
    images = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    quantized = prepare(copy.deepcopy(network), scheme)
    calibrate(quantized, [images], "minmax")
    assert read_sites(quantized)["conv"].bias is not None
    for place, quantizer in activation_quantizers(quantized).items():
        quantizer.enabled = False
        assert read_sites(quantized)["conv"].bias is None, place
        quantizer.enabled = True
    with quantizers_disabled(quantized):
        assert torch.equal(quantized(images), expected)
