"""Every unusual network goes the whole way: quantized, exported, and computed by ONNX Runtime as by PyTorch."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import VARIANTS, complete_spec
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, read_sites
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.exporters.conftest import structured_images
from tests.shared import heavy_except
from tests.weights import random_network

SIDE = 64
CASES = {
    "convnext_zepto_rms": ModelSpec("convnext_zepto_rms", 5),
    "convnext_zepto_rms_ols": ModelSpec("convnext_zepto_rms_ols", 5),
    "convnext_atto_ols": ModelSpec("convnext_atto_ols", 5),
    "convnext_atto_rms": ModelSpec("convnext_atto_rms", 5),
    "convnext_tiny_hnf": ModelSpec("convnext_tiny_hnf", 5),
    "test_convnext": ModelSpec("test_convnext", 5),
    "test_convnext2": ModelSpec("test_convnext2", 5),
    "test_convnext3": ModelSpec("test_convnext3", 5),
    "hidden": ModelSpec("convnext_large_mlp", 5, head_hidden_size=24),
    "hidden-relu-eps": ModelSpec(
        "test_convnext2", 5, head_hidden_size=24, head_activation="relu", head_norm_eps=0.1, head_norm=True
    ),
    "grey-patch-8": ModelSpec("test_convnext2", 5, in_channels=1, patch_size=8, activation="relu", norm_eps=1e-2),
    "v2-patch-2": ModelSpec("convnextv2_atto", 5, patch_size=2),
    "dilated": ModelSpec("test_convnext2", 5, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    "pruned": ModelSpec("test_convnext2", 5, hidden_widths=(96, 0, 128, 64)),
}


QUICK = {"convnext_zepto_rms_ols"}


@dataclass(frozen=True)
class Exported:
    """A network in float and quantized, and the graphs of both."""

    spec: ModelSpec
    model: ConvNeXt
    graph: onnx.ModelProto
    quantized: ConvNeXt
    quantized_graph: onnx.ModelProto


@torch.no_grad()
def build(spec: ModelSpec, images: Tensor) -> ConvNeXt:
    """Return a random network with all traits of a spec and few blocks, whose logits are spread over the classes."""
    row = VARIANTS[spec.variant]
    with pytest.MonkeyPatch.context() as patch:
        if sum(row.depths) > 9:
            patch.setitem(VARIANTS, spec.variant, dataclasses.replace(row, depths=(1, 1, 2, 1), dims=(16, 32, 48, 64)))
        model = random_network(spec)
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma") and ".grn." not in name:
            parameter.add_(1)  # what the block computes counts as much as its input
    logits = model(images)
    model.head.weight.div_(logits.std(dim=0)[:, None])
    model.head.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
    return model


@cache
def export(name: str) -> Exported:
    spec = CASES[name]
    images = torch.from_numpy(structured_images(64, spec.in_channels, SIDE, seed=1))
    model = build(spec, images)
    graph = export_float(model, spec.in_channels, SIDE)
    quantized = prepare(copy.deepcopy(model), resolve_scheme("tensorrt"))
    calibrate(quantized, [images], "minmax")
    return Exported(spec, model, graph, quantized, insert_qdq(graph, read_sites(quantized)))


@pytest.fixture(params=heavy_except(QUICK, CASES))
def exported(request: pytest.FixtureRequest) -> Exported:
    return export(request.param)


def run(graph: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
    return found


@torch.inference_mode()
def logits_of(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
    return found


def test_float_graph_computes_what_the_network_does_at_any_batch_size(exported: Exported) -> None:
    onnx.checker.check_model(exported.graph, full_check=True)
    for count in (1, 3):
        images = structured_images(count, exported.spec.in_channels, SIDE)
        expected = logits_of(exported.model, images)
        assert expected.std() > 0.1
        assert np.abs(run(exported.graph, images) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_quantized_graph_agrees_with_the_quantized_network(exported: Exported) -> None:
    onnx.checker.check_model(exported.quantized_graph, full_check=True)
    images = structured_images(100, exported.spec.in_channels, SIDE, seed=2)
    expected, floats = logits_of(exported.quantized, images), logits_of(exported.model, images)
    found = run(exported.quantized_graph, images)
    assert len(set(expected.argmax(axis=1))) >= 3  # the network tells the images apart
    # Float noise moves a value across a rounding boundary in a few images, and the spread logits show it; all others agree
    # to the last digits, which a wrong layer would not.
    difference = np.abs(found - expected)
    assert (difference.max(axis=1) < 1e-3 * np.ptp(expected)).mean() >= 0.6
    assert difference.mean() <= 0.25 * np.abs(floats - expected).mean()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.95


def test_quantized_graph_keeps_stem_and_head_in_float(exported: Exported) -> None:
    names = set(read_sites(exported.quantized))
    linear = [name for name, module in exported.model.named_modules() if isinstance(module, nn.Linear)]
    assert "head" in linear
    assert {name for name in linear if name.startswith("stages.")} <= names
    assert not any(name.startswith("downsample_layers.0.") for name in names)
    assert "head" not in names
    pairs = sum(node.op_type == "QuantizeLinear" for node in exported.quantized_graph.graph.node)
    assert pairs == len(names)


def test_cases_have_every_unusual_trait() -> None:
    """A trait that the table of variants gains must be exported here too."""
    for trait in ("version", "stem", "norm", "activation", "head_norm_first", "norm_eps", "kernel_sizes"):
        known = {getattr(row, trait) for row in VARIANTS.values()}
        assert {getattr(complete_spec(spec), trait) for spec in CASES.values()} >= known, trait
    # networks without classes are in tests/pipeline/test_feature_extractors.py; what labels mean does not change a graph
    fields = {field.name for field in dataclasses.fields(ModelSpec)} - {
        "variant",
        "num_classes",
        "feature_map",
        "multi_label",
    }
    for name in fields:
        assert len({getattr(spec, name) for spec in CASES.values()}) > 1, name
