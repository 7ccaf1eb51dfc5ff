"""Every target goes the whole way: its pairs are where its scheme says, and ONNX Runtime computes what PyTorch computes."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.exporters.onnx.export import export_network
from convnext_deploy.exporters.onnx.ort_fusion import fuse_int8_matmuls
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import QuantizedSite, prepare, read_sites
from convnext_deploy.quantization.scheme import SCHEMES, QuantizationScheme, resolve_scheme
from tests.exporters.conftest import structured_images
from tests.exporters.layer_by_layer import check_every_layer
from tests.exporters.test_variants import CASES, SIDE, build, logits_of
from tests.shared import slow_except
from tests.trained import SIDE as SIDE_OF_WAVES
from tests.trained import trained_network, wave_images

pytestmark = pytest.mark.heavy

# v1 with an overlapping stem and LayerScale, v2 with GRN, RMS norms, a hidden layer in the head.
VARIANTS = ("convnext_atto_ols", "v2-patch-2", "convnext_atto_rms", "hidden")
TARGETS = tuple(SCHEMES)
INT8_TARGETS = tuple(target for target in TARGETS if SCHEMES[target].precision == "int8")
ORT_AND_TENSORRT = slow_except(("onnxruntime", "tensorrt"), INT8_TARGETS)
_TYPES = {"int8": np.int8, "uint8": np.uint8, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}
EVERYTHING = {"stages.*.pwconv1": "int8-output", "stages.*.pwconv2": "int8-output", "head": "int8-output"}


@dataclass(frozen=True)
class Exported:
    """A network in float and quantized, its sites and its graph."""

    name: str
    model: ConvNeXt
    quantized: ConvNeXt
    sites: dict[str, QuantizedSite]
    graph: onnx.ModelProto
    channels: int
    scheme: QuantizationScheme


def export_quantized(
    model: ConvNeXt, scheme: QuantizationScheme, channels: int, side: int = SIDE, name: str = ""
) -> Exported:
    quantized = prepare(copy.deepcopy(model), scheme)
    calibrate(quantized, [torch.from_numpy(structured_images(64, channels, side, seed=1))], "minmax")
    return Exported(
        name,
        model,
        quantized,
        read_sites(quantized),
        to_graph(quantized, channels, side, scheme.target),
        channels,
        scheme,
    )


def to_graph(quantized: ConvNeXt, channels: int, side: int, target: str) -> onnx.ModelProto:
    return export_network(quantized, channels, side, runtime=target).graph


@cache
def export(name: str, target: str, *, everything: bool = False) -> Exported:
    spec = CASES[name]
    model = build(spec, torch.from_numpy(structured_images(64, spec.in_channels, SIDE, seed=1)))
    scheme = resolve_scheme(target, EVERYTHING if everything else None)
    return export_quantized(model, scheme, spec.in_channels, name=name)


@cache
def export_trained(version: int, target: str) -> tuple[ConvNeXt, onnx.ModelProto]:
    quantized = prepare(copy.deepcopy(trained_network(version)), resolve_scheme(target))
    calibrate(quantized, [torch.from_numpy(wave_images(64, seed=1)[0])], "minmax")
    return quantized, to_graph(quantized, 3, SIDE_OF_WAVES, target)


def images_for(exported: Exported) -> NDArray[np.float32]:
    return structured_images(50, exported.channels, SIDE, seed=2)


def _parameter(name: str, target: str) -> Any:
    cases = {"v2-patch-2": TARGETS, "convnext_atto_rms": ("tensorrt", "onnxruntime")}
    marks = [] if target in cases.get(name, ()) else [pytest.mark.slow]
    if not marks and (name, target) not in (("v2-patch-2", "onnxruntime"),):
        marks = [pytest.mark.slow]
    return pytest.param((name, target), marks=marks, id=f"{name}-{target}")


@pytest.fixture(params=[_parameter(name, target) for name in VARIANTS for target in TARGETS])
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


@pytest.mark.parametrize("version", slow_except((2,), (1, 2)))
@pytest.mark.parametrize("target", slow_except(("onnxruntime", "tensorrt", "tensorrt-fp8"), TARGETS))
def test_trained_network_has_the_same_logits_in_onnxruntime_with_its_optimizations(version: int, target: str) -> None:
    quantized, graph = export_trained(version, target)
    images = wave_images(400, seed=4)[0]
    expected, floats = logits_of(quantized, images), logits_of(trained_network(version), images)
    fused = fuse_int8_matmuls(graph) if target == "onnxruntime" else graph
    for form, optimize in ((graph, True), (graph, False), (fused, True)):
        found = run(form, images, optimize=optimize)
        assert np.abs(found - expected).mean() <= 0.1 * np.abs(floats - expected).mean()
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.999


@pytest.mark.heavy
@pytest.mark.parametrize("version", slow_except((2,), (1, 2)))
def test_trained_network_has_the_same_logits_in_openvino(version: int, core: Any) -> None:
    quantized, graph = export_trained(version, "openvino")
    images = wave_images(400, seed=4)[0]
    expected, floats = logits_of(quantized, images), logits_of(trained_network(version), images)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    (found,) = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", settings)([images]).values()
    assert np.abs(found - expected).mean() <= 0.1 * np.abs(floats - expected).mean()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.999


@pytest.mark.slow
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


def test_every_layer_computes_in_onnxruntime_what_it_does_in_pytorch(exported: Exported) -> None:
    check_every_layer(exported.quantized, exported.graph, images_for(exported))


@pytest.mark.heavy
@pytest.mark.parametrize("target", slow_except(("tensorrt-depthwise",), INT8_TARGETS))
def test_every_layer_agrees_when_every_output_is_quantized(target: str) -> None:
    found = export("v2-patch-2", target, everything=True)
    assert found.sites["head"].output is not None
    check_every_layer(found.quantized, found.graph, images_for(found))


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
            found[node.output[0].removesuffix("_quantized")] = node.input[0]
    return found


def test_graph_has_exactly_the_pairs_of_the_scheme(exported: Exported) -> None:
    onnx.checker.check_model(exported.graph, full_check=True)
    assert exported.graph.opset_import[0].version == 20
    layers = {name for name, module in exported.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    chosen = exported.scheme.select(layers)
    assert chosen.keys() == exported.sites.keys()
    expected = {f"{name}.input" for name in chosen}
    expected |= {f"{name}.output" for name, site in exported.sites.items() if site.output is not None}
    overlapping = {"convnext_atto_ols": {"downsample_layers.0.0", "downsample_layers.0.1"}}.get(exported.name, set())
    for name, layer in chosen.items():
        has_output = layer.output is not None and not (layer.patches and name not in overlapping)
        assert (f"{name}.output" in expected) == has_output, name
    found = pairs(exported.graph)
    assert found.keys() == expected
    kinds = Counter(node.op_type for node in exported.graph.graph.node)
    assert kinds["DequantizeLinear"] == len(expected) + len(chosen)
    producers = {name: node for node in exported.graph.graph.node for name in node.output}
    values = initializers(exported.graph)
    dtype = np.dtype(_TYPES[exported.scheme.activation.dtype])
    for place, source in found.items():
        name, _, side = place.rpartition(".")
        zero_point = values[f"{place}_zero_point"]
        assert zero_point.dtype == dtype
        if side == "output":
            assert producers[source].doc_string == name, "nothing of another layer comes between"
    for name in chosen:
        kind = _TYPES[exported.scheme.weight.dtype]
        assert values[f"{name}.weight_quantized"].dtype == values[f"{name}.weight_zero_point"].dtype == kind
        assert not values[f"{name}.weight_zero_point"].astype(np.float32).any()


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-depthwise", "tensorrt-fp8"])
def test_graph_for_tensorrt_has_no_unsigned_type_and_no_zero_point(target: str) -> None:
    graph = export("v2-patch-2", target).graph
    for name, value in initializers(graph).items():
        assert value.dtype in (np.dtype(np.float32), _TYPES[SCHEMES[target].weight.dtype], np.dtype(np.int64)), name
        assert not name.endswith("zero_point") or not value.astype(np.float32).any()


@pytest.mark.parametrize("name", slow_except(("v2-patch-2",), ("convnext_atto_rms", "v2-patch-2")))
def test_onnxruntime_runs_every_product_of_its_scheme_in_int8(name: str, tmp_path: Path) -> None:
    exported = export(name, "onnxruntime")
    graph = fuse_int8_matmuls(exported.graph)
    run(graph, structured_images(1, exported.channels, SIDE), dump=tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert all(site.output is None for site in exported.sites.values())
    assert kinds["MatMulIntegerToFloat"] == len(exported.sites)
    assert kinds["DequantizeLinear"] == kinds["QLinearConv"] == kinds["BiasGelu"] == 0
    patches = sum(site.weight.ndim == 4 for site in exported.sites.values())
    assert patches == 4


@pytest.mark.parametrize("target", ORT_AND_TENSORRT)
def test_overrides_reach_the_graph(target: str) -> None:
    model = export("v2-patch-2", target).model
    overrides = {"stages.3.*": "float", "head": "int8", "stages.0.0.dwconv": "int8-output"}
    found = export_quantized(model, resolve_scheme(target, overrides), 3)
    places = pairs(found.graph)
    assert not any(place.startswith("stages.3.") for place in places)
    assert {"head.input", "stages.0.0.dwconv.input", "stages.0.0.dwconv.output"} <= places.keys()
    assert "head.output" not in places
    check_every_layer(found.quantized, found.graph, images_for(found))
