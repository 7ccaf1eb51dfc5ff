"""The network as a whole: stochastic depth, layout, stems, gradients, checkpointing and initialization."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.layers import NORMS

DEPTHS, DIMS = (1, 2, 3, 1), (8, 16, 24, 32)


# a network of each kind: v1, v2, and the unusual stems, norms, kernels and heads
KINDS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {"use_grn": True},
    "overlap": {"stem": "overlap", "stem_dim": 4, "norm": "rmsnorm"},
    "overlap_act": {"stem": "overlap_act", "norm": "simplenorm", "activation": "silu"},
    "norm first": {"head_norm_first": True, "kernel_sizes": (7, 5, 5, 3), "activation": "relu"},
    "hidden": {"head_hidden_size": 6, "head_activation": "relu", "activation": "gelu_tanh"},
}


def small_network(*, use_grn: bool = False, **options: Any) -> ConvNeXt:
    torch.manual_seed(0)
    layer_scale_init = None if use_grn else 0.5
    return ConvNeXt(DEPTHS, DIMS, num_classes=5, layer_scale_init=layer_scale_init, use_grn=use_grn, **options)


class LiveBytes(TorchDispatchMode):
    """Knows how many bytes of what operations returned are still held by anything."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                self.storages[reference.cdata] = (reference, leaf.untyped_storage().nbytes())
        return result

    @property
    def total(self) -> int:
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def create_norm(channels: int) -> nn.Module:
    return NORMS["layernorm"](channels, 1e-6)


def blocks(network: ConvNeXt) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


def images(size: int = 32, channels: int = 3, count: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(7))


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
    block = Block(8, 7, create_norm, "gelu", layer_scale_init=1.0, use_grn=False, drop_path_rate=0.5)
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    network = small_network(**KINDS[kind])
    network(images()).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize(("kind", "widths"), [("overlap", (4, 8)), ("overlap_act", (8, 8))])
@torch.no_grad()
def test_overlapping_stem_quarters_the_image_with_two_convolutions(kind: str, widths: tuple[int, int]) -> None:
    stem = small_network(**KINDS[kind]).downsample_layers[0]
    shapes = [tuple(p.shape) for p in stem.parameters() if p.ndim == 4]
    assert shapes == [(widths[0], 3, 3, 3), (widths[1], widths[0], 3, 3)]
    found = stem(images(48))
    assert found.shape == (3, 12, 12, 8)
    assert found.is_contiguous()


def test_activation_stands_between_the_convolutions_only_when_stem_is_overlap_act() -> None:
    state = small_network(stem="overlap_act").state_dict()
    assert [key for key in state if key.startswith("downsample_layers.0.") and key.endswith("weight")] == [
        "downsample_layers.0.0.weight",
        "downsample_layers.0.2.weight",
        "downsample_layers.0.3.weight",
    ]
    state = small_network(stem="overlap").state_dict()
    assert "downsample_layers.0.2.weight" in state
    assert "downsample_layers.0.3.weight" not in state


def test_blocks_have_the_kernels_of_their_model_stage() -> None:
    network = small_network(kernel_sizes=(7, 5, 5, 3))
    sizes = [tuple(block.dwconv.weight.shape[2:]) for block in blocks(network)]
    assert sizes == [(7, 7)] + [(5, 5)] * 5 + [(3, 3)]


def gradients(network: ConvNeXt, batch: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return the loss, the gradients, and how many bytes were kept between the two passes."""
    torch.manual_seed(11)
    with LiveBytes() as live:
        loss = network.train()(batch).square().sum()
        kept = live.total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_memory_and_nothing_else(kind: str) -> None:
    options = {**KINDS[kind], "drop_path_rate": 0.3, "head_dropout": 0.2}
    plain, saving = small_network(**options), small_network(gradient_checkpointing=True, **options)
    loss, expected, kept = gradients(plain, images(64))
    other_loss, found, kept_when_saving = gradients(saving, images(64))
    assert torch.equal(loss, other_loss)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert kept_when_saving < 0.6 * kept


@torch.no_grad()
def test_gradient_checkpointing_changes_nothing_when_evaluating() -> None:
    plain, saving = small_network().eval(), small_network(gradient_checkpointing=True).eval()
    assert torch.equal(saving(images()), plain(images()))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "simplenorm"])
def test_initial_weights_are_as_in_the_papers(norm: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"norm": norm, "head_hidden_size": 64, "layer_scale_init": 1e-6}
    network = ConvNeXt((1, 1, 1, 1), (64, 128, 128, 128), **options)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            assert torch.equal(parameter, torch.full_like(parameter, 1e-6))
        elif name.endswith("bias"):
            assert parameter.abs().max() == 0
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


def test_depthwise_convolutions_stay_in_float32_under_autocast_on_a_cpu() -> None:
    torch.manual_seed(0)
    block = Block(8, 7, nn.LayerNorm, "gelu", layer_scale_init=1.0, use_grn=False, drop_path_rate=0.0)
    x, seen = torch.randn(2, 9, 9, 8), []
    block.dwconv.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    block.pwconv1.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(x).sum().backward()
        with torch.no_grad():
            block(x)
    assert seen == [torch.float32, torch.bfloat16] * 2
