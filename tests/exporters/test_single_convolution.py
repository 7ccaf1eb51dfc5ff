"""A single convolution as a network: dead channels give the same integers, and its bias is rounded as runtimes round it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.exporters.onnx.qdq import insert_qdq
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare, quantizers_disabled, read_sites
from convnext_deploy.quantization.scheme import SCHEMES, QuantizationScheme
from tests.exporters.test_targets import run
from tests.quantization.quantizers import activation_quantizers
from tests.shared import slow_except

pytestmark = pytest.mark.heavy


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
@pytest.mark.parametrize("case", slow_except(("both",), ("usual", "dead-weight", "zero-input", "both")))
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
    known = SCHEMES[target]
    scheme = QuantizationScheme("one", (("conv", "int8-output"),), known.activation, known.weight, output=known.output)
    quantized = prepare(copy.deepcopy(network), scheme)
    calibrate(quantized, [images], "minmax")
    sites = read_sites(quantized)
    graph = insert_qdq(export_float(network, 6, 12), sites)
    expected = quantized(images).numpy()
    output = sites["conv"].output
    assert output is not None
    for optimize in (True, False):
        found = run(graph, images.numpy(), optimize=optimize)
        scale = np.repeat(output.scale, 12 * 12) if output.scale.ndim else output.scale
        steps = np.rint((found - expected) / scale)
        assert np.abs(steps).max() <= 1
        assert (steps != 0).mean() <= 1e-4  # rounding ties
    # A dead channel still has its bias.
    assert np.abs(network(images).numpy() - expected).max() <= 3 * output.scale.max()


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
