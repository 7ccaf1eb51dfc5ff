"""A pruned network is the dense one with units set to zero, and with its second layers fitted closer to the dense one."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.layers import GRN
from convnext_deploy.models.variants import VARIANTS, Variant, build_model
from convnext_deploy.models.zoo.cost import count_macs
from convnext_deploy.pruning.build import prune_network
from convnext_deploy.pruning.choose import choose_widths
from convnext_deploy.pruning.importance import BlockImportance, Importance, measure_importance, spread_losses
from convnext_deploy.pruning.slicing import blocks_of
from convnext_deploy.quantization.sensitivity import kl_divergence
from tests.shared import heavy_except
from tests.trained import CLASSES, trained_network, wave_images
from tests.weights import fill

WIDTHS = (32, 96, 0, 96, 64)  # of 64, 128, 192, 192, 256
VERSIONS = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture(autouse=True)
def _waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of `tests.trained` as variants."""
    for version in (1, 2):
        monkeypatch.setitem(VARIANTS, f"waves_{version}", Variant(version, (1, 1, 2, 1), (16, 32, 48, 64)))


def spec_of(version: int) -> ModelSpec:
    return ModelSpec(f"waves_{version}", CLASSES)


def images(count: int = 64, seed: int = 3) -> Tensor:
    return torch.from_numpy(wave_images(count, seed)[0])


def blocks(network: ConvNeXt) -> list[Block | None]:
    return [block for _, _, block in blocks_of(network)]


def loss(network: ConvNeXt, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return kl_divergence(network(x), other(x))


class MeanOfThoseThere(GRN):
    """GRN that takes its mean over as many units as are not masked."""

    units: int

    def forward(self, x: Tensor) -> Tensor:
        norms = x.square().sum(dim=(1, 2), keepdim=True).sqrt()
        quotient = norms / (norms.sum(dim=-1, keepdim=True) / self.units + 1e-6)
        return x + self.gamma * x * quotient + self.beta


def masked(dense: ConvNeXt, pruned: ConvNeXt, importance: Importance, widths: tuple[int, ...]) -> ConvNeXt:
    """Return the dense network with the weights of the pruned one, and zeros where units or blocks are not there."""
    result = copy.deepcopy(dense)
    result.load_state_dict({k: v for k, v in pruned.state_dict().items() if "stages" not in k}, strict=False)
    for whole, small, known, width in zip(blocks(result), blocks(pruned), importance, widths, strict=True):
        assert whole is not None
        if small is None:
            for parameter in whole.pwconv2.parameters():
                parameter.zero_()
            continue
        keep = known.keep(width)
        own, target = small.state_dict(), whole.state_dict()
        for name, value in own.items():
            unit_dim = {"pwconv1.weight": 0, "pwconv1.bias": 0, "pwconv2.weight": 1}.get(
                name, -1 if "grn" in name else None
            )
            if unit_dim is None:
                target[name].copy_(value)
            else:
                target[name].zero_().index_copy_(unit_dim, keep, value)
        if whole.grn is not None:
            whole.grn.__class__ = MeanOfThoseThere
            whole.grn.units = width  # type: ignore[assignment]  # of the class that it has now
    return result


@pytest.mark.parametrize("correct", [False, True], ids=["as they were", "corrected"])
@VERSIONS
def test_pruned_network_is_the_masked_dense_network(version: int, correct: bool) -> None:
    network, x = copy.deepcopy(trained_network(version)), images()
    fill(network, seed=version)
    importance = measure_importance(network, x[:16], "taylor")
    pruned, spec = prune_network(network, spec_of(version), importance, WIDTHS, x, correct=correct)
    assert spec.hidden_widths == WIDTHS
    with torch.no_grad():
        expected = masked(network, pruned, importance, WIDTHS).double()(x.double())
        assert (pruned.double()(x.double()) - expected).abs().max() < 1e-6 * expected.abs().max()
    loaded = build_model(spec).eval()
    loaded.load_state_dict(pruned.float().state_dict())
    assert torch.equal(loaded(x), pruned(x))


@VERSIONS
def test_uncorrected_weights_are_those_of_the_dense_network(version: int) -> None:
    network, x = trained_network(version), images(8)
    importance = measure_importance(network, x)
    pruned, _ = prune_network(network, spec_of(version), importance, WIDTHS, x, correct=False)
    cut = copy.deepcopy(network).double()
    for block, known, width in zip(blocks(cut), importance, WIDTHS, strict=True):
        assert block is not None
        gone = torch.tensor(sorted({*range(known.width)} - {*known.keep(width).tolist()}), dtype=torch.long)
        # what is 0 before the activation is 0 behind it, in GRN's mean too
        block.pwconv1.weight.data[gone] = block.pwconv1.bias.data[gone] = 0.0
        block.pwconv2.weight.data[:, gone] = 0.0
        if block.grn is not None:
            block.grn.beta.data[..., gone] = 0.0
        if not width:
            block.pwconv2.bias.data.zero_()
    with torch.no_grad():
        expected = cut(x.double())
        # zeros count in GRN's mean, to which it adds 1e-6
        tolerance = 1e-6 if version == 1 else 1e-5
        assert (pruned.double()(x.double()) - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("version", heavy_except((1,), (1, 2)))
def test_correction_and_second_order_are_worth_their_while(version: int) -> None:
    network, x, fresh = trained_network(version), images(128), images(128, seed=9)
    spec = spec_of(version)
    known = {method: measure_importance(network, x, method) for method in ("second-order", "taylor")}
    halves = tuple(block.width // 64 * 32 for block in known["taylor"])
    losses = {
        (method, correct): loss(network, prune_network(network, spec, found, halves, x, correct=correct)[0], fresh)
        for method, found in known.items()
        for correct in (True, False)
    }
    assert losses["second-order", True] < 0.5 * losses["second-order", False]
    assert losses["taylor", True] < 0.5 * losses["taylor", False]
    shuffled = tuple(
        replace(block, order=tuple(torch.randperm(block.width, generator=torch.Generator().manual_seed(0)).tolist()))
        for block in known["taylor"]
    )
    blind = loss(network, prune_network(network, spec, shuffled, halves, x)[0], fresh)
    assert losses["second-order", True] < 0.5 * blind
    for found in known.values():
        for block in found:
            assert tuple(block.losses) == tuple(block.errors) == (*range(0, block.width + 1, 32),)
            assert all(a >= b >= 0 for a, b in itertools.pairwise(block.losses.values()))
            assert block.losses[block.width] == block.errors[block.width] == 0.0
            assert block.errors[0] == pytest.approx(1.0, rel=0.05)
    assert sum(
        block.losses[width] for block, width in zip(known["second-order"], halves, strict=True)
    ) == pytest.approx(losses["second-order", True], rel=1.0)


def test_the_stream_keeps_its_mean_where_a_block_goes() -> None:
    network, x = trained_network(1), images()
    importance = measure_importance(network, x)
    for widths in ((64, 128, 192, 0, 256), (64, 128, 0, 192, 256), (0, 128, 192, 192, 256)):
        pruned, _ = prune_network(network, spec_of(1), importance, widths, x)
        place = widths.index(0)
        number = sum(1 for part in network.trunk()[: place + 8] if isinstance(part, Block))
        assert number
        trunks = [net.trunk() for net in (network, pruned)]
        until = 1 + [i for i, part in enumerate(trunks[0]) if isinstance(part, Block)][place]
        means = []
        for trunk in trunks:
            y = x
            with torch.no_grad():
                for part in trunk[:until]:
                    y = part(y)
            means.append(y.mean(dim=(0, 1, 2)))
        assert torch.allclose(means[0], means[1], atol=1e-4 * means[0].abs().max().item())


def test_another_activation_is_fitted_too() -> None:
    network, x, fresh = trained_network(1), images(128), images(128, seed=9)
    importance = measure_importance(network, x[:32])
    whole = tuple(block.width for block in importance)
    pruned, spec = prune_network(network, spec_of(1), importance, whole, x, activation="relu")
    assert (spec.activation, spec.hidden_widths) == ("relu", None)
    plain = build_model(spec).eval()
    plain.load_state_dict(network.state_dict())
    assert loss(network, pruned, fresh) < 0.5 * loss(network, plain, fresh)
    untouched, same = prune_network(network, spec_of(1), importance, whole, x)
    assert same == spec_of(1)
    assert all(torch.equal(a, b) for a, b in zip(untouched.parameters(), network.parameters(), strict=True))


def test_a_pruned_network_can_be_pruned_again() -> None:
    network, x = trained_network(2), images()
    first, spec = prune_network(network, spec_of(2), measure_importance(network, x), WIDTHS, x)
    importance = measure_importance(first, x)
    assert [block.width for block in importance] == list(WIDTHS)
    second, smaller = prune_network(first, spec, importance, (32, 64, 0, 32, 0), x)
    assert smaller.hidden_widths == (32, 64, 0, 32, 0)
    assert second(x).isfinite().all()


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ((32, 96), r"^widths has 2 entries; expected 5, one for each block\.$"),
        ((32, 96, 0, 96, 288), r"^widths\[4\] = 288 is out of range; expected 0 to 256, as the block has\.$"),
        ((0,) * 5, r"^widths are all 0, which leaves no block; expected at least one that is larger\.$"),
    ],
)
def test_widths_that_the_network_cannot_have_are_refused(widths: tuple[int, ...], said: str) -> None:
    importance = tuple(BlockImportance(tuple(range(n)), {}, {}) for n in (64, 128, 192, 192, 256))
    with pytest.raises(RecipeError, match=said):
        prune_network(trained_network(1), spec_of(1), importance, widths, images(2))


def test_losses_between_the_measured_widths_follow_the_error() -> None:
    errors = {0: 1.0, 32: 0.1, 64: 0.01, 96: 0.001, 128: 0.0}
    found = spread_losses(errors, {0: 4.0, 64: 0.04})
    assert found == pytest.approx({0: 4.0, 32: 0.4, 64: 0.04, 96: 0.004, 128: 0.0})
    # a wider block that was measured worse, by chance, costs what the narrower one does
    assert spread_losses(errors, {0: 4.0, 32: 0.1, 64: 0.2})[32] == 0.2


def test_the_share_of_operations_is_reached_where_it_costs_least() -> None:
    def block(width: int, cost: float) -> BlockImportance:
        widths = range(0, width + 1, 32)
        return BlockImportance(tuple(range(width)), {}, {w: cost * (width - w) ** 2 for w in widths})

    spec = spec_of(1)
    importance = (block(64, 1.0), block(128, 1.0), block(192, 1e-4), block(192, 1.0), block(256, 1.0))
    widths = choose_widths(spec, importance, 0.9, 32)
    assert count_macs(replace(spec, hidden_widths=widths), 32) <= 0.9 * count_macs(spec, 32)
    assert widths[2] < 192
    assert widths[:2] + widths[3:] == (64, 128, 192, 256)
    assert choose_widths(spec, importance, 1.0, 32) == (64, 128, 192, 192, 256)
    with pytest.raises(
        RecipeError, match=r"^macs_share = 0\.01 is out of reach for waves_1: its least network has \d+%"
    ):
        choose_widths(spec, importance, 0.01, 32)
