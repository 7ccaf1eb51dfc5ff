"""The parts of the network: GRN, stochastic depth, layout, stem and initialization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.models.convnext import GRN, Block, ConvNeXt, drop_path

DEPTHS, DIMS = (1, 2, 3, 1), (8, 16, 24, 32)


def small_network(*, use_grn: bool = False, **options: Any) -> ConvNeXt:
    torch.manual_seed(0)
    layer_scale_init = None if use_grn else 0.5
    return ConvNeXt(DEPTHS, DIMS, num_classes=5, layer_scale_init=layer_scale_init, use_grn=use_grn, **options)


def blocks(network: ConvNeXt) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


def images(size: int = 32, channels: int = 3, count: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(7))


def randomized_grn(channels: int) -> GRN:
    grn = GRN(channels)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        grn.gamma.normal_(generator=generator)
        grn.beta.normal_(generator=generator)
    return grn


def test_grn_equals_formula_in_float64() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 6))
    grn = randomized_grn(6)
    expected = np.empty_like(x)
    for image in range(2):
        norms = np.array([np.sqrt(np.sum(x[image, :, :, channel] ** 2)) for channel in range(6)])
        response = norms / (norms.mean() + 1e-6)
        gamma, beta = grn.gamma.detach().numpy().ravel(), grn.beta.detach().numpy().ravel()
        expected[image] = gamma * (x[image] * response) + beta + x[image]
    np.testing.assert_allclose(grn(torch.from_numpy(x).float()).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_grn_is_identity_when_new() -> None:
    x = torch.randn(2, 3, 3, 4)
    assert torch.equal(GRN(4)(x), x)


@torch.no_grad()
def test_grn_does_not_overflow_when_input_is_half_precision() -> None:
    x = torch.full((1, 56, 56, 4), 2000.0)  # norms of 112000, beyond float16's 65504
    grn = randomized_grn(4)
    found = grn(x.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), grn(x), rtol=2e-3, atol=1.0)


def test_drop_path_keeps_or_zeroes_whole_samples_and_keeps_expectation() -> None:
    torch.manual_seed(0)
    x = torch.full((20_000, 2, 2, 3), 3.0)
    ratio = drop_path(x, 0.25) / x
    assert torch.equal(ratio, ratio[:, :1, :1, :1].expand_as(ratio))
    assert set(ratio.unique().tolist()) == {0.0, float(ratio.max())}
    assert ratio.max().item() == pytest.approx(1 / 0.75)
    standard_error = (0.25 / 0.75 / len(x)) ** 0.5
    assert ratio[:, 0, 0, 0].mean().item() == pytest.approx(1.0, abs=4 * standard_error)


def test_drop_path_rates_are_one_linspace_over_all_blocks() -> None:
    rates = [block.drop_path_rate for block in blocks(small_network(drop_path_rate=0.3))]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3], abs=1e-7)


@torch.no_grad()
def test_drop_path_changes_nothing_when_evaluating() -> None:
    plain, dropping = small_network().eval(), small_network(drop_path_rate=0.9)
    dropping.load_state_dict(plain.state_dict())
    expected = plain(images())
    torch.manual_seed(1)
    assert not torch.equal(dropping.train()(images()), expected)
    assert torch.equal(dropping.eval()(images()), expected)


@torch.no_grad()
def test_block_in_training_is_input_plus_scaled_or_dropped_branch() -> None:
    torch.manual_seed(0)
    block = Block(8, 0.5, 1.0, use_grn=False)
    x = torch.randn(16, 4, 4, 8)
    branch = block.eval()(x) - x
    change = block.train()(x) - x
    dropped = change.flatten(1).abs().amax(dim=1) == 0
    assert 0 < dropped.sum() < 16
    torch.testing.assert_close(change[~dropped], 2 * branch[~dropped], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_grn", [False, True])
@pytest.mark.parametrize("patch_size", [2, 4])
@torch.no_grad()
def test_residual_stream_is_channels_last(patch_size: int, use_grn: bool) -> None:
    network = small_network(use_grn=use_grn, patch_size=patch_size).eval()
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert inputs[0].is_contiguous()
        assert output.is_contiguous()
        seen.append((tuple(inputs[0].shape), tuple(output.shape)))

    for block in blocks(network):
        block.register_forward_hook(record)
    network(images(64))
    sides = [64 // patch_size // 2**stage for stage in range(4)]
    expected = [(3, sides[stage], sides[stage], DIMS[stage]) for stage in range(4) for _ in range(DEPTHS[stage])]
    assert seen == [(shape, shape) for shape in expected]


@pytest.mark.parametrize(("in_channels", "patch_size", "size"), [(1, 2, 32), (3, 2, 16), (1, 4, 64), (3, 8, 64)])
@torch.no_grad()
def test_forward_takes_other_channels_and_patch_sizes(in_channels: int, patch_size: int, size: int) -> None:
    network = small_network(in_channels=in_channels, patch_size=patch_size).eval()
    stem = network.state_dict()["downsample_layers.0.0.weight"]
    assert tuple(stem.shape) == (DIMS[0], in_channels, patch_size, patch_size)
    logits = network(images(size, in_channels))
    assert logits.shape == (3, 5)
    assert logits.std(dim=0).min() > 0


@torch.no_grad()
def test_forward_gives_each_image_its_own_logits() -> None:
    network = small_network(use_grn=True).eval()
    for block in blocks(network):
        assert block.grn is not None
        block.grn.gamma.fill_(0.5)
    batch = images()
    one_by_one = torch.cat([network(image[None]) for image in batch])
    torch.testing.assert_close(network(batch), one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_grn", [False, True])
def test_every_parameter_gets_a_gradient(use_grn: bool) -> None:
    network = small_network(use_grn=use_grn)
    network(images()).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_initial_weights_are_as_in_the_papers() -> None:
    torch.manual_seed(0)
    network = ConvNeXt((1, 1, 1, 1), (64, 128, 128, 128), layer_scale_init=1e-6)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            assert torch.equal(parameter, torch.full_like(parameter, 1e-6))
        elif name.endswith("bias"):
            assert parameter.abs().max() == 0
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
