"""The forms for runtimes on CPUs compute what the network does, with its names, and have the nodes that they are made for."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from functools import cache
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.runtime_rewrites import rewrite_for
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.models.identities import drop_identities
from convnext_deploy.models.variants import VARIANTS, build_model
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, read_sites, without_quantizers
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.shared import heavy_except

SIDE = 64
PREPROCESS = Preprocess(SIDE, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
DEPTHS = (0, 1, 2, 0)
KINDS = ("convnext_atto", "convnextv2_atto", "convnext_atto_rms", "convnext_atto_ols", "convnext_tiny_hnf")
FORMS = (("openvino", False), ("onnxruntime", False), ("onnxruntime", True))
"""Runtime, and whether products are INT8."""


@cache
def network(variant: str) -> ConvNeXt:
    """Return a network of few blocks, of which every parameter does something, with the gain of a smoothed GRN."""
    with torch.random.fork_rng([]), pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, variant, dataclasses.replace(VARIANTS[variant], depths=DEPTHS))
        torch.manual_seed(0)
        model = build_model(ModelSpec(variant, 10)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, module in model.named_modules():
                if name.endswith("grn"):
                    module.gain = torch.nn.Parameter(1 + 0.1 * torch.rand_like(module.gamma))
    return model


def images(count: int = 2, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("runtime", "quantized"), FORMS)
@pytest.mark.parametrize("folded", heavy_except((True,), (False, True)))
@pytest.mark.parametrize("variant", KINDS)
@torch.no_grad()
def test_form_is_exact(variant: str, folded: bool, runtime: str, quantized: bool) -> None:
    model = copy.deepcopy(network(variant)).double()
    if folded:
        model = drop_identities(fold(model, PREPROCESS).network)
    for batch in (images(), images(1, SIDE, 96)):
        expected = model(batch)
        found = rewrite_for(copy.deepcopy(model), runtime, quantized)(batch)
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(("runtime", "quantized"), [*FORMS, ("tensorrt", True)])
def test_layers_keep_their_names_and_their_numbers(runtime: str, quantized: bool) -> None:
    model = network("convnextv2_atto")
    form = rewrite_for(copy.deepcopy(model), runtime, quantized)
    before, after = model.state_dict(), form.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(after[name].reshape(value.shape), value) for name, value in before.items())


def test_any_other_runtime_gets_the_network_as_it_is() -> None:
    model = copy.deepcopy(network("convnext_atto"))
    kinds = [type(module) for module in model.modules()]
    for runtime in ("tensorrt", "tensorrt-rtx", "tensorrt-depthwise"):
        assert [type(module) for module in rewrite_for(model, runtime, quantized=True).modules()] == kinds


@cache
def graph(variant: str, runtime: str, quantized: bool = False) -> onnx.ModelProto:
    model = drop_identities(fold(network(variant), PREPROCESS).network)
    return export_float(rewrite_for(model, runtime, quantized), 3, SIDE)


def kinds(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.heavy
@pytest.mark.parametrize("variant", heavy_except(("convnextv2_atto",), ("convnext_atto", "convnextv2_atto")))
def test_float_for_onnxruntime_is_convolutions(variant: str) -> None:
    found = kinds(graph(variant, "onnxruntime"))
    assert found["MatMul"] == 0
    assert found["Conv"] == 4 + 3 * sum(DEPTHS)
    assert found["Transpose"] <= 2 * (sum(DEPTHS) + 4) + 1
    assert found["Reshape"] == 0


@pytest.mark.parametrize("variant", heavy_except(("convnext_atto",), ("convnext_atto", "convnextv2_atto")))
def test_openvino_gets_convolutions_and_norms_of_three_dimensions(variant: str) -> None:
    proto = graph(variant, "openvino")
    found, blocks = kinds(proto), sum(DEPTHS)
    assert found["MatMul"] == 0
    assert found["Conv"] == 4 + 3 * blocks
    # around each norm of a block, of the stem and of a downsampling layer, and none between blocks
    assert found["Transpose"] <= 2 * (blocks + 4) + 1
    assert found["Shape"] == 0, "shapes are constants"
    inferred = onnx.shape_inference.infer_shapes(proto)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}
    norms = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    assert [ranks[node.input[0]] for node in norms] == [3] * (blocks + 4) + [2]


@pytest.mark.heavy
def test_onnxruntime_gets_no_reduction_over_middle_dimensions() -> None:
    found = kinds(graph("convnextv2_atto", "onnxruntime", quantized=True))
    assert found["ReduceL2"] == 0
    assert found["MatMul"] == 3 * sum(DEPTHS)
    assert kinds(graph("convnextv2_atto", "tensorrt"))["ReduceL2"] == sum(DEPTHS)


@pytest.mark.heavy
def test_version_1_in_int8_is_for_onnxruntime_what_it_is_for_tensorrt() -> None:
    assert kinds(graph("convnext_atto", "onnxruntime", quantized=True)) == kinds(graph("convnext_atto", "tensorrt"))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "variant", heavy_except(("convnextv2_atto",), ("convnext_atto", "convnextv2_atto", "convnext_atto_rms"))
)
def test_openvino_runs_every_product_of_its_scheme_in_int8(variant: str, core: Any) -> None:
    quantized = prepare(copy.deepcopy(network(variant)), resolve_scheme("openvino"))
    calibrate(quantized, [images(4).float()], "minmax")
    sites = read_sites(quantized)
    plain = rewrite_for(without_quantizers(quantized), "openvino", quantized=True)
    proto = insert_qdq(export_float(plain, 3, SIDE, 2), sites)
    assert not any(site.input.zero_point.any() for site in sites.values()), "a move in front and no zero point"
    compiled = core.compile_model(
        core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    layers = [
        {key: str(value.value) for key, value in op.get_rt_info().items()}
        for op in compiled.get_runtime_model().get_ops()
    ]
    convolutions = [layer for layer in layers if "Convolution" in layer["layerType"]]
    int8 = [layer for layer in convolutions if layer["runtimePrecision"] in ("i8", "u8")]
    assert len(int8) == len(sites)
    float_layers = [
        name for name, module in plain.named_modules() if isinstance(module, torch.nn.Conv2d) and name not in sites
    ]
    assert len(convolutions) == len(sites) + len(float_layers)
