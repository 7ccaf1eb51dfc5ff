"""The gradient of the weights of depthwise convolutions, computed another way, is PyTorch's, wherever the network is trained."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext_deploy.models import depthwise
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.depthwise import depthwise_conv2d
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import SCHEMES


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Sizes of the maps that were convolved with the other gradient."""
    maps: list[torch.Size] = []
    usual = depthwise._Depthwise.apply

    def apply(x: Tensor, *parameters: Tensor) -> Any:
        maps.append(x.shape[2:])
        return usual(x, *parameters)

    monkeypatch.setattr(depthwise, "_has_fast_convolutions", lambda: True)
    monkeypatch.setattr(depthwise._Depthwise, "apply", staticmethod(apply))
    return maps


def _tensors(shape: tuple[int, ...], kernel: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
    return [
        tensor.requires_grad_()
        for tensor in (x, torch.randn(channels, 1, *kernel, dtype=dtype), torch.randn(channels, dtype=dtype))
    ]


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2, 3, 4, 5), (7, 7)),  # a map smaller than the kernel
        ((1, 1, 8, 2), (5, 7)),
        ((3, 2, 1, 1), (7, 7)),
        ((2, 2, 1, 3), (9, 5)),
        ((1, 2, 5, 5), (3, 3)),
        ((2, 1, 3, 2), (31, 31)),
    ],
)
def test_gradients_are_those_of_finite_differences_and_of_pytorch(
    shape: tuple[int, ...], kernel: tuple[int, int]
) -> None:
    tensors = x, weight, bias = _tensors(shape, kernel, torch.float64)
    assert torch.autograd.gradcheck(depthwise._Depthwise.apply, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(depthwise._Depthwise.apply, tensors, fast_mode=True)
    padding = (kernel[0] // 2, kernel[1] // 2)
    output = F.conv2d(x, weight, bias, padding=padding, groups=shape[1])
    weights = torch.randn_like(output)
    expected = torch.autograd.grad((output * weights).sum(), tensors)
    found = torch.autograd.grad((depthwise._Depthwise.apply(*tensors) * weights).sum(), tensors)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 8, 15])
def test_float32_is_as_exact_as_pytorch(side: int, applied: list[torch.Size]) -> None:
    tensors = _tensors((4, 16, side, side), (7, 7), torch.float32)
    wide = x, weight, bias = [tensor.detach().double().requires_grad_() for tensor in tensors]
    depthwise_conv2d(*tensors).square().sum().backward()
    assert applied == [(side, side)]
    F.conv2d(x, weight, bias, padding=3, groups=16).square().sum().backward()
    for tensor, exact in zip(tensors, wide, strict=True):
        assert tensor.grad is not None
        assert exact.grad is not None
        assert (tensor.grad - exact.grad).abs().max() < 2e-6 * exact.grad.abs().max()


def test_only_the_gradients_that_are_asked_for() -> None:
    x, weight, bias = _tensors((2, 3, 4, 4), (7, 7), torch.float64)
    y = depthwise._Depthwise.apply(x.detach(), weight, None)
    (gradient,) = torch.autograd.grad(y.sum(), [weight])
    assert gradient.shape == weight.shape
    y = depthwise._Depthwise.apply(x, weight.detach(), bias)
    assert len(torch.autograd.grad(y.sum(), [x, bias])) == 2


def test_a_block_trains_with_it_under_autocast_checkpoints_and_quantizers(applied: list[torch.Size]) -> None:
    torch.manual_seed(0)
    block = Block(16, 7, lambda dim: nn.LayerNorm(dim), "gelu", layer_scale_init=1.0, use_grn=False, drop_path_rate=0.0)
    plain = copy.deepcopy(block)
    del plain.dwconv._conv_forward
    x = torch.randn(2, 6, 6, 16)

    def gradient(network: nn.Module, again: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            y = checkpoint(network, x, use_reentrant=False) if again else network(x)
        y.square().sum().backward()
        weight = network.get_parameter("dwconv.weight")
        assert weight.grad is not None
        return weight.grad.clone()

    expected = gradient(plain)
    assert not applied
    for again, times in ((False, 1), (True, 2)):
        torch.testing.assert_close(gradient(block, again), expected, rtol=1e-5, atol=1e-5)
        assert len(applied) == times
        applied.clear()
    autocast = gradient(block, dtype=torch.bfloat16)
    assert applied
    torch.testing.assert_close(autocast, gradient(plain, dtype=torch.bfloat16), rtol=1e-4, atol=1e-3)
    applied.clear()
    for layer in (block, plain):
        prepare(nn.Sequential(layer), SCHEMES["tensorrt-depthwise"].with_overrides({"0.dwconv": "int8-output"}))
    expected = gradient(plain)
    assert not applied
    torch.testing.assert_close(gradient(block), expected, rtol=1e-5, atol=1e-5)
    assert applied


def _network() -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt((1, 1, 1, 1), (8, 8, 16, 16), num_classes=3, kernel_sizes=(3, 7, 7, 7), dilations=(1, 2, 1, 1))


def test_inference_other_types_small_kernels_dilation_and_frozen_weights_keep_the_plain_convolution(
    applied: list[torch.Size],
) -> None:
    network, x = _network(), torch.randn(2, 3, 32, 32)
    network(x)
    assert applied == [(2, 2), (1, 1)]  # neither kernels of 3 nor dilation
    applied.clear()
    with torch.no_grad():
        network(x)
    copy.deepcopy(network).double()(x.double())
    network.requires_grad_(False)
    network(x.requires_grad_())
    assert not applied


@pytest.mark.heavy
def test_exported_and_compiled_graphs_hold_the_plain_convolution(applied: list[torch.Size]) -> None:
    network, x = _network(), torch.randn(2, 3, 32, 32)
    expected = network(x)
    applied.clear()
    program = torch.export.export(network.eval(), (x,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {target for target in called if "conv" in target} == {"aten.conv2d.default"}
    torch.testing.assert_close(program.module()(x), expected)
    torch.testing.assert_close(torch.compile(network, backend="aot_eager")(x), expected)
    assert not applied


def test_functional_transforms() -> None:
    x, weight, bias = _tensors((2, 3, 4, 4), (5, 5), torch.float64)

    def loss(convolve: Any, image: Tensor, kernel: Tensor) -> Tensor:
        y: Tensor = convolve(image[None], kernel, bias.detach())
        return y.square().sum()

    def plain(image: Tensor, kernel: Tensor, offset: Tensor) -> Tensor:
        return F.conv2d(image, kernel, offset, padding=2, groups=3)

    def by_image(convolve: Any) -> Tensor:
        one = torch.func.grad(lambda image, kernel: loss(convolve, image, kernel), argnums=1)
        return torch.func.vmap(one, in_dims=(0, None))(x.detach(), weight.detach())  # type: ignore[no-any-return]

    torch.testing.assert_close(by_image(depthwise._Depthwise.apply), by_image(plain))
