"""Large batches on the CPU: taken through the expanded layers a few images at a time, where nobody needs them whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.variants import VARIANTS, build_model
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import resolve_scheme
from tests.shared import heavy_except

BATCH = 9
IMAGES = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def random_network(variant: str) -> ConvNeXt:
    network = build_model(ModelSpec(variant, 4)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def count_images(network: ConvNeXt) -> list[int]:
    """Return a list that grows by the batch size of every call of the first block's first linear layer."""
    sizes: list[int] = []
    block = next(module for module in network.modules() if isinstance(module, Block))
    block.pwconv1.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("variant", ["convnext_atto", "convnextv2_atto"])
def test_block_takes_few_images_at_once_when_no_gradient_is_kept(variant: str) -> None:
    network = random_network(variant)
    sizes = count_images(network)
    whole = network(IMAGES)
    assert sizes == [BATCH]
    sizes.clear()
    with torch.inference_mode():
        parts = network(IMAGES)
    assert len(sizes) > 1
    assert sum(sizes) == BATCH
    assert (whole - parts).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("variant", heavy_except(("convnextv2_atto",), ("convnext_atto", "convnextv2_atto")))
def test_quantized_block_takes_few_images_at_once_too(variant: str) -> None:
    network = prepare(random_network(variant), resolve_scheme("onnxruntime"))
    calibrate(network, [IMAGES[:2]])
    sizes = count_images(network)
    whole = network(IMAGES)
    sizes.clear()
    with torch.no_grad():
        parts = network(IMAGES)
    assert len(sizes) > 1
    assert sum(sizes) == BATCH
    # a value between two steps may go to the other one
    assert (whole - parts).square().mean() <= 1e-3 * whole.square().mean()


def test_block_keeps_the_batch_whole_when_the_graph_is_traced() -> None:
    network = random_network("convnext_atto")
    with torch.no_grad():
        program = torch.export.export(network, (IMAGES,))
    products = [node for node in program.graph.nodes if "linear" in str(node.target)]
    assert len(products) == 2 * sum(VARIANTS["convnext_atto"].depths) + 1
