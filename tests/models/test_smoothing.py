"""Scaling the channels between a norm and the layer after it moves no logit, for every variant, and only where it can."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.channel_scaling import add_gains, scale_inputs, smoothable
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import fold
from convnext_deploy.models.layers import GRN
from convnext_deploy.models.variants import VARIANTS, build_model
from tests.models.conftest import assert_equal_states, random_state

CLASSES = 7
PREPROCESS = Preprocess(32, 0.8, "bilinear", (0.41, 0.46, 0.5), (0.21, 0.25, 0.3))
SPECS = {
    **{variant: ModelSpec(variant, CLASSES) for variant in VARIANTS},
    "hidden": ModelSpec("convnext_atto", CLASSES, head_hidden_size=24, head_activation="relu"),
    "hidden-hnf": ModelSpec("convnext_tiny_hnf", CLASSES, head_hidden_size=24),
    "hidden-rms": ModelSpec("convnext_atto_rms", CLASSES, head_hidden_size=24),
    "v2-patch-2": ModelSpec("convnextv2_atto", CLASSES, patch_size=2),
}
# one of each family, for the tests that need not see all of them
FAMILIES = pytest.mark.parametrize(
    "name", ["test_convnext", "convnextv2_atto", "convnext_zepto_rms_ols", "convnext_atto_rms", "hidden-hnf"]
)


def network_of(name: str, dtype: torch.dtype = torch.float64) -> ConvNeXt:
    """Return a small network of the variant's kind, in which every parameter changes the logits."""
    spec = SPECS[name]
    small = dataclasses.replace(VARIANTS[spec.variant], depths=(1, 1, 2, 1), dims=(8, 12, 16, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, spec.variant, small)
        with torch.device("meta"):
            network = build_model(spec)
        network.load_state_dict(random_state(spec), assign=True)
    return network.to(dtype).eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def scales_of(network: ConvNeXt, seed: int = 0) -> dict[str, Tensor]:
    """Return random scales over three orders of magnitude for all inputs that can have them."""
    generator = torch.Generator().manual_seed(seed)
    scales = {}
    for layer in smoothable(network):
        channels = network.get_parameter(f"{layer}.weight").shape[1]
        exponents = torch.rand(channels, generator=generator, dtype=torch.float64) * 3 - 1.5
        exponents[:2] = torch.tensor([-1.5, 1.5])
        scales[layer] = 10**exponents
    return scales


@torch.no_grad()
def inputs_of(network: ConvNeXt) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits and what every linear layer and convolution gets, by name."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):

            def take(_: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = arguments[0].clone()

            hooks.append(layer.register_forward_pre_hook(take))
    logits = network(images())
    for hook in hooks:
        hook.remove()
    return logits, found


def assert_scaled(before: ConvNeXt, after: ConvNeXt, scales: Mapping[str, Tensor]) -> None:
    """Check that logits are the same, that the named inputs are divided by their scales, and that no other moved."""
    logits, inputs = inputs_of(before)
    scaled_logits, scaled_inputs = inputs_of(after)
    largest = logits.abs().max()
    assert logits.std() > 0.1 * largest > 0, "the logits say nothing"
    assert (scaled_logits - logits).abs().max() <= 1e-9 * largest
    for name, x in inputs.items():
        linear = isinstance(before.get_submodule(name), nn.Linear)
        expected = x
        if name in scales:
            expected = x / (scales[name] if linear else scales[name][:, None, None])
        worst = (scaled_inputs[name] - expected).abs().max()
        assert worst <= 1e-9 * expected.abs().max(), name


@pytest.mark.parametrize("name", SPECS)
def test_scaled_inputs_move_no_logit(name: str) -> None:
    network = network_of(name)
    scaled = copy.deepcopy(network)
    scales = scales_of(network)
    scale_inputs(scaled, scales)
    assert_scaled(network, scaled, scales)


@pytest.mark.parametrize("name", SPECS)
def test_smoothable_names_the_layers_behind_a_norm_or_grn_and_no_other(name: str) -> None:
    row = VARIANTS[SPECS[name].variant]
    blocks = ["stages.0.0", "stages.1.0", "stages.2.0", "stages.2.1", "stages.3.0"]
    expected = {f"{block}.pwconv1": f"{block}.norm" for block in blocks}
    if row.version == 2:
        expected |= {f"{block}.pwconv2": f"{block}.grn" for block in blocks}
    expected |= {f"downsample_layers.{stage}.1": f"downsample_layers.{stage}.0" for stage in (1, 2, 3)}
    has_hidden = bool(SPECS[name].head_hidden_size or row.head_hidden_size)
    expected["pre_logits" if has_hidden else "head"] = "norm_pre" if row.head_norm_first else "norm"
    assert smoothable(network_of(name)) == expected


@FAMILIES
def test_scaling_one_layer_changes_its_weight_and_the_constants_before_it_only(name: str) -> None:
    network = network_of(name)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    layer = "stages.2.1.pwconv1"
    scale = scales_of(network)[layer]
    scale_inputs(network, {layer: scale})
    after = network.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} <= {
        f"{layer}.weight",
        "stages.2.1.norm.weight",
        "stages.2.1.norm.bias",
    }
    torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] * scale, rtol=1e-14, atol=0)
    key = "stages.2.1.norm.weight"
    torch.testing.assert_close(after[key], before[key] / scale, rtol=1e-14, atol=0)
    assert after.keys() == before.keys()  # nothing beside a GRN gets another parameter


@FAMILIES
def test_scaling_twice_is_scaling_by_the_product(name: str) -> None:
    network = network_of(name)
    first, second = scales_of(network, seed=1), scales_of(network, seed=2)
    twice = copy.deepcopy(network)
    scale_inputs(twice, first)
    scale_inputs(twice, second)
    assert_scaled(network, twice, {layer: first[layer] * second[layer] for layer in first})


@FAMILIES
def test_scaling_back_gives_the_weights_of_before(name: str) -> None:
    network = network_of(name)
    there_and_back = copy.deepcopy(network)
    scales = scales_of(network)
    scale_inputs(there_and_back, scales)
    scale_inputs(there_and_back, {layer: 1 / scale for layer, scale in scales.items()})
    found = there_and_back.state_dict()
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-13, atol=0)
    gains = [tensor for key, tensor in found.items() if key.endswith("gain")]
    assert len(gains) == (5 if name == "convnextv2_atto" else 0)
    for gain in gains:
        torch.testing.assert_close(gain, torch.ones_like(gain), rtol=1e-13, atol=0)


@FAMILIES
def test_folded_network_can_be_scaled_and_scaled_network_folded(name: str) -> None:
    network = network_of(name)
    scales = scales_of(network)
    folded = fold(network, PREPROCESS).network
    scaled = copy.deepcopy(folded)
    scale_inputs(scaled, scales)
    assert_scaled(folded, scaled, scales)
    with torch.no_grad():
        logits, again = network(images()), fold(scaled, PREPROCESS).network(images())
    assert (again - logits).abs().max() <= 1e-9 * logits.abs().max()


def test_float32_networks_move_no_more_than_float32_rounds() -> None:
    network = network_of("convnextv2_atto", torch.float32)
    scaled = copy.deepcopy(network)
    scale_inputs(scaled, scales_of(network))  # the scales stay in float64
    assert {parameter.dtype for parameter in scaled.parameters()} == {torch.float32}
    with torch.no_grad():
        logits, found = network(images().float()), scaled(images().float())
    assert (found - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_scaled_network_keeps_what_is_trained_and_what_is_not() -> None:
    network = network_of("convnextv2_atto")
    network.norm.weight.requires_grad_(False)  # type: ignore[union-attr]  # its head has a norm
    scale_inputs(network, scales_of(network))
    frozen = {key for key, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"norm.weight"}
    assert all(parameter.is_leaf and parameter.grad_fn is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("layer", "value", "word"),
    [
        ("stages.0.0.pwconv2", 2.0, "no norm or GRN"),  # behind an activation, which has no constants
        ("stages.0.0.dwconv", 2.0, "no norm or GRN"),
        ("downsample_layers.0.0", 2.0, "no norm or GRN"),
        ("stages.9.9.pwconv1", 2.0, "no norm or GRN"),
        ("", 2.0, "no norm or GRN"),
        ("stages.0.0.pwconv1", 0.0, "positive and finite"),
        ("stages.0.0.pwconv1", -1.0, "positive and finite"),
        ("stages.0.0.pwconv1", float("inf"), "positive and finite"),
        ("stages.0.0.pwconv1", float("nan"), "positive and finite"),
    ],
)
def test_a_refused_scale_leaves_the_network_as_it_was(layer: str, value: float, word: str) -> None:
    network = network_of("test_convnext")
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    bad = torch.full((8,), 2.0)
    bad[3] = value
    scales = {"head": torch.full((20,), 3.0), layer: bad, "stages.1.0.pwconv1": torch.full((12,), 3.0)}
    with pytest.raises(CheckpointError, match=word) as refusal:
        scale_inputs(network, scales)
    assert f"'{layer}'" in str(refusal.value)
    assert_equal_states(network.state_dict(), before)


def test_a_refused_scale_gives_no_grn_a_gain() -> None:
    network = network_of("convnextv2_atto")
    bad = {"stages.0.0.pwconv2": torch.ones(32), "stages.1.0.pwconv2": -torch.ones(48)}
    with pytest.raises(CheckpointError, match=r"'stages\.1\.0\.pwconv2'"):
        scale_inputs(network, bad)
    assert all(module.gain is None for module in network.modules() if isinstance(module, GRN))


def test_gains_come_back_from_a_state_dict() -> None:
    network = network_of("convnextv2_atto")
    layers = ("stages.0.0.pwconv2", "stages.2.1.pwconv2", "stages.2.1.pwconv1")
    scales = {layer: scale for layer, scale in scales_of(network).items() if layer in layers}
    scaled = copy.deepcopy(network)
    scale_inputs(scaled, scales)
    state = scaled.state_dict()
    assert state.keys() - network.state_dict().keys() == {"stages.0.0.grn.gain", "stages.2.1.grn.gain"}

    with pytest.raises(RuntimeError, match="gain"):
        copy.deepcopy(network).load_state_dict(state)
    add_gains(network, state)
    assert network.state_dict().keys() == state.keys()
    network.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(network(images()), scaled(images()))


def test_gains_that_were_only_added_change_no_bit() -> None:
    network = network_of("convnextv2_atto")
    with torch.no_grad():
        before = network(images())
        add_gains(network, network.state_dict())
        assert all(module.gain is None for module in network.modules() if isinstance(module, GRN))
        add_gains(network, ["stages.1.0.grn.gain", "stages.1.0.gain", "head.weight"])
        assert [name for name, _ in network.named_parameters() if name.endswith("gain")] == ["stages.1.0.grn.gain"]
        assert torch.equal(network(images()), before)


def test_grn_with_gain_is_the_formula_over_the_scale() -> None:
    generator = torch.Generator().manual_seed(3)
    grn = GRN(5).double()
    with torch.no_grad():
        for parameter in grn.parameters():
            parameter.copy_(torch.randn(1, 1, 1, 5, generator=generator))
        x = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
        scale = torch.tensor([0.1, 1.0, 30.0, 2.0, 0.5], dtype=torch.float64)
        # algorithm 1 of the paper, then the division
        norms = x.pow(2).sum((1, 2), keepdim=True).sqrt()
        expected = (grn.gamma * (x * norms / (norms.mean(-1, keepdim=True) + 1e-6)) + grn.beta + x) / scale
        grn.gain = nn.Parameter(1 / scale.view(1, 1, 1, 5))
        grn.gamma.div_(scale)
        grn.beta.div_(scale)
        torch.testing.assert_close(grn(x), expected, rtol=1e-12, atol=1e-14)


def test_scales_of_another_number_are_refused_before_anything_changes() -> None:
    network = network_of("convnextv2_atto")
    before = copy.deepcopy(network.state_dict())
    scales = {**scales_of(network), "stages.2.1.pwconv1": torch.ones(3)}
    with pytest.raises(
        CheckpointError, match=r"'stages\.2\.1\.pwconv1' has \d+ input channels, and scales of shape \(3,\)"
    ):
        scale_inputs(network, scales)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_network_without_its_identities_is_refused() -> None:
    network = network_of("convnext_zepto_rms_ols")
    scales = scales_of(network)
    for module in network.modules():
        if type(module).__name__ == "ScaleNorm":
            module.weight = None  # type: ignore[assignment]  # as drop_identities does
    with pytest.raises(CheckpointError, match="has no weight to divide"):
        scale_inputs(network, scales)
