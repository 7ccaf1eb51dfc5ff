"""The walk through a network block by block, and the correction of biases on it, against means taken by hooks here."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization import bias_correction as blockwise
from convnext_deploy.quantization.bias_correction import correct_biases, run_block, walk
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.fake_quantize import FakeQuantize
from convnext_deploy.quantization.prepare import prepare, quantized_layers, quantizers_disabled
from convnext_deploy.quantization.scheme import QuantizationScheme, TensorScheme, resolve_scheme
from tests.shared import heavy_except
from tests.weights import fill

U8 = TensorScheme(0, 255, symmetric=False, per_channel=False)
W4 = TensorScheme(-8, 7, symmetric=True, per_channel=True)  # coarse, so that means move
SITES = ("downsample_layers.[01].?", "stages.[013].*.pwconv?", "stages.1.*.dwconv")
SCHEME = QuantizationScheme("test", tuple((site, "int8") for site in SITES), U8, W4)
Means = dict[str, NDArray[np.float64]]


def images(count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def calibrated(scheme: QuantizationScheme = SCHEME, *, use_grn: bool = False) -> ConvNeXt:
    with torch.random.fork_rng([]):
        network = ConvNeXt(
            (1, 1, 1, 1), (8, 8, 12, 12), num_classes=3, layer_scale_init=None if use_grn else 0.5, use_grn=use_grn
        )
    fill(network)
    prepare(network.eval(), scheme)
    calibrate(network, [images()])
    return network


@torch.no_grad()
def output_means(network: nn.Module, x: Tensor) -> Means:
    """Return the mean of every linear layer's and convolution's output by channel, over all images and pixels."""
    found: Means = {}
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):

            def take(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
                values = output.double().numpy()
                axes = (0, 2, 3) if isinstance(module, nn.Conv2d) else tuple(range(values.ndim - 1))
                found[name] = values.mean(axes)

            hooks.append(layer.register_forward_hook(take))
    network(x)
    for hook in hooks:
        hook.remove()
    return found


def off(found: Means, expected: Means, name: str) -> float:
    return float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max())


@pytest.mark.parametrize("use_grn", [False, True])
def test_corrected_layers_have_the_mean_outputs_of_the_float_network(use_grn: bool) -> None:
    network = calibrated(use_grn=use_grn)
    with quantizers_disabled(network):
        expected = output_means(network, images())
    before = output_means(network, images())
    correct_biases(network.trunk(), images())
    after = output_means(network, images())
    names = {name for name, _ in quantized_layers(network)}
    assert len(names) == 9
    for name in names:
        assert off(before, expected, name) > 1e-3, name
        assert off(after, expected, name) < 1e-5, name


@pytest.mark.parametrize("target", heavy_except(("onnxruntime",), ("onnxruntime", "tensorrt", "openvino")))
def test_correction_brings_means_nearer_under_every_scheme(target: str) -> None:
    # A quantized output rounds what the bias was to correct, so it is no longer exact there.
    network = calibrated(resolve_scheme(target))
    with quantizers_disabled(network):
        expected = output_means(network, images())
    before = output_means(network, images())
    correct_biases(network.trunk(), images())
    after = output_means(network, images())
    names = [name for name, _ in quantized_layers(network)]
    total = sum(off(before, expected, name) for name in names)
    assert sum(off(after, expected, name) for name in names) < (0.5 if target == "onnxruntime" else 1e-3) * total


def test_correction_changes_the_biases_of_quantized_layers_and_nothing_else() -> None:
    network = calibrated()
    before = copy.deepcopy(network.state_dict())
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    advanced: list[None] = []
    correct_biases(network.trunk(), images(), lambda: advanced.append(None))
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.bias" for name, _ in quantized_layers(network)}
    assert len(advanced) == len(network.trunk()) == 8
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == flags
    assert all(parameter.is_leaf for parameter in network.parameters())
    assert all(not module._forward_hooks for module in network.modules())
    assert all(q.enabled and q.observer is None for q in network.modules() if isinstance(q, FakeQuantize))


def test_nothing_is_corrected_where_nothing_is_quantized() -> None:
    network = calibrated()
    before = copy.deepcopy(network.state_dict())
    with quantizers_disabled(network):
        correct_biases(network.trunk(), images())
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-6)


def test_layers_without_a_bias_are_left() -> None:
    blocks = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)))
    fill(blocks)
    x = images(8).flatten()[: 50 * 6].view(50, 6) + 1
    prepare(blocks, QuantizationScheme("test", (("*", "int8"),), U8, W4))
    calibrate(blocks, [x], "minmax")
    with quantizers_disabled(blocks):
        expected = output_means(blocks, x)
    before = copy.deepcopy(blocks.state_dict())
    correct_biases(list(blocks), x)
    changed = {key for key, value in blocks.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"1.1.bias"}
    assert off(output_means(blocks, x), expected, "1.1") < 1e-5  # also what came from the layers before it


@pytest.mark.parametrize(
    ("bytes_", "taken", "later"),
    [(1, 1, 1), (3 * 32 * 32 * 4 * 7 + 9, 7, 40), (8 * 8 * 8 * 4 * 3, 1, 3), (1 << 27, 40, 40)],
)
def test_as_many_images_are_taken_as_memory_allows(
    bytes_: int, taken: int, later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An image has 3 * 32 * 32 values; after the stem there are 8 * 8 * 8, which is less, and there is room for more.
    monkeypatch.setattr(blockwise, "MOST_BYTES", bytes_)
    network = calibrated()
    sizes: list[int] = []
    assert min(40, max(1, bytes_ // (3 * 32 * 32 * 4))) == taken

    def look(_: nn.Module, floats: Tensor, arriving: Tensor, outputs: Tensor) -> None:
        assert len(floats) == len(arriving) == len(outputs)
        sizes.append(len(floats))

    assert walk(network.trunk(), images(), look) == taken
    assert (sizes[0], sizes[1]) == (taken, later)
    assert sizes == sorted(sizes)
    counts = dict(zip(("downsample_layers.0.0", "stages.0.0.pwconv1"), sizes, strict=False))
    with quantizers_disabled(network):
        means = {name: output_means(network, images()[:count]) for name, count in counts.items()}
    assert correct_biases(network.trunk(), images()) == taken
    for name, count in counts.items():
        assert off(output_means(network, images()[:count]), means[name], name) < 1e-5


def test_images_are_fewer_where_the_stem_makes_them_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    stem = nn.Conv2d(3, 12, 1)  # four times as many values
    monkeypatch.setattr(blockwise, "MOST_BYTES", 12 * 32 * 32 * 4 * 5 + 100)
    block = prepare(nn.Sequential(nn.Conv2d(12, 2, 1)), QuantizationScheme("test", (("*", "int8"),), U8, W4))
    seen: list[int] = []
    walk([stem, block], images(), lambda _, floats, *__: seen.append(len(floats)))
    assert seen == [5]


@torch.no_grad()
def test_every_block_gets_its_float_inputs_and_what_comes_from_quantized_blocks() -> None:
    network = calibrated()
    trunk = network.trunk()
    x = images()
    floats, quantized = [x], [x]
    for block in trunk:
        quantized.append(block(quantized[-1]))
    with quantizers_disabled(network):
        for block in trunk:
            floats.append(block(floats[-1]))
    seen: list[int] = []

    def look(block: nn.Module, before: Tensor, arriving: Tensor, expected: Tensor) -> None:
        place = next(i for i, part in enumerate(trunk) if part is block)
        seen.append(place)
        close: Callable[..., None] = torch.testing.assert_close
        for found, wanted in ((before, floats[place]), (arriving, quantized[place]), (expected, floats[place + 1])):
            close(found, wanted, rtol=1e-4, atol=1e-4)
        assert torch.is_grad_enabled() is False

    walk(trunk, x, look)
    assert seen == [0, 1, 2, 3, 7]  # the others have no quantized layer


@torch.no_grad()
def test_later_blocks_get_what_adjusted_blocks_give_and_the_float_inputs_of_before() -> None:
    network = calibrated()
    trunk = network.trunk()
    arrived: list[Tensor] = []
    references: list[Tensor] = []

    def move(block: nn.Module, floats: Tensor, arriving: Tensor, expected: Tensor) -> None:
        arrived.append(arriving)
        references.append(floats)
        for _, layer in quantized_layers(block):
            assert layer.bias is not None
            layer.bias += 1

    untouched = copy.deepcopy(network)
    walk(trunk, images(), move)
    torch.testing.assert_close(arrived[1], trunk[0](images()), rtol=1e-4, atol=1e-4)
    with quantizers_disabled(untouched):
        torch.testing.assert_close(references[1], untouched.trunk()[0](images()), rtol=1e-4, atol=1e-4)
    assert (arrived[1] - references[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("count", heavy_except((1, 33), (1, 31, 32, 33, 70)))
def test_block_runs_in_parts_as_it_runs_whole(count: int) -> None:
    block = calibrated().trunk()[3]
    x = torch.randn(count, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    largest: list[int] = []
    hook = block.register_forward_pre_hook(lambda _, arguments: largest.append(len(arguments[0])))
    quantized, plain = run_block(block, x, quantized=True), run_block(block, x, quantized=False)
    hook.remove()
    assert max(largest) <= 32
    assert sum(largest) == 2 * count
    torch.testing.assert_close(quantized, block(x), rtol=1e-4, atol=1e-4)
    with quantizers_disabled(block):
        torch.testing.assert_close(plain, block(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(quantized, plain, atol=1e-3)
