"""Folding moves no logit, for every variant, and leaves neutral what it took: weights 1, biases 0."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import REWRITES, Folding, Rewrite, fold
from convnext_deploy.models.identities import identity_parameters
from convnext_deploy.models.variants import VARIANTS, build_model, complete_spec
from tests.models.conftest import assert_equal_states, random_state
from tests.weights import WIDEST

CLASSES = 16
REDUCED_DEPTHS = (1, 2, 2, 2)
PREPROCESS = Preprocess(64, 0.8, "bilinear", (0.41, 0.46, 0.5), (0.21, 0.25, 0.3))  # unlike every default
GREY = dataclasses.replace(PREPROCESS, mean=(0.37,), std=(0.19,))
# what the table of variants does not have
OTHERS = {
    "grey": ModelSpec("test_convnext", CLASSES, in_channels=1),
    "grey-v2-patch-2": ModelSpec("convnextv2_atto", CLASSES, in_channels=1, patch_size=2),
    "patch-8": ModelSpec("test_convnext2", CLASSES, patch_size=8),
    "hidden": ModelSpec("convnext_atto", CLASSES, head_hidden_size=24, head_activation="relu"),
    "hidden-hnf": ModelSpec("convnext_tiny_hnf", CLASSES, head_hidden_size=24),
    "hidden-rms": ModelSpec("convnext_atto_rms", CLASSES, head_hidden_size=24, head_norm_eps=0.1),
    "eps-0": ModelSpec("test_convnext3", CLASSES, norm_eps=0.0, activation="relu"),
}
SPECS = {**{variant: ModelSpec(variant, CLASSES) for variant in VARIANTS}, **OTHERS}
_QUICK = ("convnext_atto_rms", "convnext_zepto_rms_ols", "convnextv2_atto", "test_convnext", *OTHERS)


def _marks(name: str) -> list[pytest.MarkDecorator]:
    if VARIANTS[SPECS[name].variant].dims[-1] > WIDEST:
        return [pytest.mark.slow]
    return [] if name in _QUICK else [pytest.mark.heavy]


QUICK_AND_SLOW = [pytest.param(name, marks=_marks(name)) for name in SPECS]


@contextmanager
def few_blocks(variant: str) -> Iterator[tuple[int, ...]]:
    """Within the block the variant has 7 blocks at most; gives their numbers."""
    row = VARIANTS[variant]
    depths = REDUCED_DEPTHS if sum(row.depths) > 9 else row.depths
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, variant, dataclasses.replace(row, depths=depths))
        yield depths


def network_of(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> ConvNeXt:
    """Return a network of few blocks in which every parameter changes the logits."""
    with few_blocks(spec.variant):
        with torch.device("meta"):
            network = build_model(spec)
        network.load_state_dict(random_state(spec), assign=True)
    return network.to(dtype).eval()


def preprocess_of(spec: ModelSpec) -> Preprocess:
    return GREY if spec.in_channels == 1 else PREPROCESS


def images_of(spec: ModelSpec, count: int = 2) -> Tensor:
    """Return normalized images."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, spec.in_channels, 64, 64, generator=generator)


@torch.no_grad()
def moved(before: ConvNeXt, after: ConvNeXt, images: Tensor, images_after: Tensor | None = None) -> float:
    """Return the largest difference of the logits as a part of the largest logit."""
    expected = before(images)
    found = after(images if images_after is None else images_after)
    assert found.dtype == expected.dtype == images.dtype
    largest = expected.abs().max()
    assert expected.std() > 0.1 * largest > 0, "the logits say nothing"
    return float((found - expected).abs().max() / largest)


def changed(before: ConvNeXt, after: ConvNeXt) -> set[str]:
    """Return the names of the parameters that are not the same bit for bit."""
    state = after.state_dict()
    return {key for key, tensor in before.state_dict().items() if not torch.equal(tensor, state[key])}


def constants(network: ConvNeXt, stem_norm: str) -> dict[Rewrite, set[str]]:
    """Return the names of what each rewrite takes, from the names alone."""
    names = [key for key in network.state_dict() if not key.startswith(stem_norm)]
    norms = {key for key in names if "norm" in key}
    norms |= {k for k in names if k.split(".")[0] == "downsample_layers" and k.split(".")[1] != "0" and ".0." in k[18:]}
    return {
        "norm_affine": norms,
        "grn_bias": {key for key in names if key.endswith("grn.beta")},
        "layer_scale": {key for key in names if key.endswith(".gamma") and "grn" not in key},
    }


def stem_norm_of(spec: ModelSpec) -> str:
    return f"downsample_layers.0.{ {'patch': 1, 'overlap': 2, 'overlap_act': 3}[complete_spec(spec).stem] }"


def assert_exact(result: Folding) -> None:
    """Check what the certificate says of its own comparison."""
    assert result.certificate.holds
    for difference in result.certificate.differences:
        assert difference.relative <= (1e-12 if difference.precision == "float64" else 1e-5)


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_fold_moves_no_logit(name: str) -> None:
    spec = SPECS[name]
    network, preprocess, images = network_of(spec), preprocess_of(spec), images_of(spec)
    result = fold(network, preprocess, images)
    assert_exact(result)
    assert moved(network, result.network, images) <= 1e-5
    assert result.preprocess == preprocess

    wide = copy.deepcopy(network).double()
    wide_result = fold(wide, preprocess)
    assert moved(wide, wide_result.network, images.double()) <= 1e-12
    # the arithmetic is in float64, and what comes out of it is rounded once
    assert_equal_states(result.network.state_dict(), wide_result.network.float().state_dict())


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_fold_leaves_every_constant_neutral_but_those_of_the_stem_norm(name: str) -> None:
    spec = SPECS[name]
    network = network_of(spec)
    result = fold(network, preprocess_of(spec))
    taken = set().union(*constants(network, stem_norm_of(spec)).values())
    assert set(identity_parameters(result.network)) == taken
    assert identity_parameters(network) == ()
    for key in taken:
        assert result.network.state_dict()[key].unique().tolist() == [0.0 if key.endswith(("bias", "beta")) else 1.0]
    certificate = result.certificate
    assert [(kept.rewrite, kept.source) for kept in certificate.kept] == [("norm_affine", stem_norm_of(spec))]
    assert "residual stream" in certificate.kept[0].reason
    # every layer that took something changed, and nothing else
    takers = {f"{fold.target}.{part}" for fold in certificate.folded for part in ("weight", "bias")}
    only_scaled = complete_spec(spec).norm != "layernorm"  # no shift, so the biases of most layers stay
    only_shifted = {f"{f.target}.weight" for f in certificate.folded if f.rewrite == "grn_bias"}
    found = changed(network, result.network)
    assert found <= takers | taken
    assert found | only_shifted >= taken | (
        {key for key in takers if key.endswith("weight")} if only_scaled else takers
    )


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("variant", ["test_convnext", "convnextv2_atto", "convnext_zepto_rms_ols"])
def test_fold_does_only_the_rewrites_that_it_is_asked_for(variant: str, rewrite: Rewrite) -> None:
    spec = ModelSpec(variant, CLASSES)
    network = network_of(spec)
    result = fold(network, PREPROCESS, rewrites=[rewrite])
    assert_exact(result)
    assert set(identity_parameters(result.network)) == constants(network, stem_norm_of(spec))[rewrite]
    certificate = result.certificate
    assert {step.rewrite for step in certificate.folded} | {step.rewrite for step in certificate.kept} <= {rewrite}
    assert bool(changed(network, result.network)) == bool(constants(network, stem_norm_of(spec))[rewrite])


def test_fold_does_nothing_when_no_rewrite_is_asked_for() -> None:
    network = network_of(ModelSpec("test_convnext", CLASSES))
    result = fold(network, PREPROCESS, rewrites=())
    assert changed(network, result.network) == set()
    assert not result.certificate.folded
    assert not result.certificate.kept
    assert [difference.absolute for difference in result.certificate.differences] == [0.0, 0.0]


def test_weights_are_those_of_the_formulas() -> None:
    network = network_of(ModelSpec("test_convnext", CLASSES), torch.float64)
    before = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    after = {key: t.numpy() for key, t in fold(network, PREPROCESS).network.state_dict().items()}

    def expected(layer: str, norm: str) -> tuple[Any, Any]:
        weight, bias = before[f"{layer}.weight"].copy(), before[f"{layer}.bias"].copy()
        for channel, (scale, shift) in enumerate(zip(before[f"{norm}.weight"], before[f"{norm}.bias"], strict=True)):
            for output in range(len(weight)):
                bias[output] += shift * weight[output, channel].sum()
            weight[:, channel] *= scale
        return weight, bias

    pairs = {"stages.1.1.pwconv1": "stages.1.1.norm", "downsample_layers.2.1": "downsample_layers.2.0", "head": "norm"}
    for layer, norm in pairs.items():
        weight, bias = expected(layer, norm)
        np.testing.assert_allclose(after[f"{layer}.weight"], weight, rtol=1e-13)
        np.testing.assert_allclose(after[f"{layer}.bias"], bias, rtol=1e-12)
    gamma, layer = before["stages.1.1.gamma"], "stages.1.1.pwconv2"
    np.testing.assert_allclose(after[f"{layer}.weight"], before[f"{layer}.weight"] * gamma[:, None], rtol=1e-15)
    np.testing.assert_allclose(after[f"{layer}.bias"], before[f"{layer}.bias"] * gamma, rtol=1e-15)


@pytest.mark.parametrize("name", ["test_convnext", "convnextv2_atto", "convnext_zepto_rms_ols", "grey"])
@pytest.mark.parametrize("pixels", ["normalized", "unit", "byte"])
def test_fold_again_changes_no_bit(name: str, pixels: Any) -> None:
    spec = SPECS[name]
    once = fold(network_of(spec), preprocess_of(spec), pixels=pixels)
    twice = fold(once.network, once.preprocess, pixels=pixels)
    assert changed(once.network, twice.network) == set()
    assert twice.preprocess == once.preprocess
    assert twice.certificate.folded == ()
    assert all(difference.absolute == 0 for difference in twice.certificate.differences)
    reasons = {kept.source: kept.reason for kept in twice.certificate.kept}
    for step in once.certificate.folded:
        assert reasons[step.source] == "it already changes nothing"


@pytest.mark.parametrize("variant", ["convnext_atto", "convnextv2_atto"])
def test_fold_is_exact_when_an_outlier_channel_is_multiplied_in_and_divided_out(variant: str) -> None:
    network = network_of(ModelSpec(variant, CLASSES))
    with torch.no_grad():
        for block in (network.stages[1][0], network.stages[3][1]):  # type: ignore[index]  # Sequential
            block.norm.weight[3] *= 1000
            block.norm.bias[3] *= 1000
            block.pwconv1.weight[:, 3] /= 1000
    result = fold(network, PREPROCESS)
    assert_exact(result)
    weight = result.network.stages[1][0].pwconv1.weight  # type: ignore[index]  # Sequential
    assert weight.abs().amax(dim=0)[3] < 3 * weight.abs().amax(dim=0).median()  # the outlier is gone


def test_fold_is_exact_when_channels_are_dead_or_negative() -> None:
    network = network_of(ModelSpec("test_convnext", CLASSES))
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith(("gamma", "norm.weight")):
                parameter[:5] = 0
                parameter[5:9] *= -1
    assert_exact(fold(network, PREPROCESS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_fold_keeps_the_original_and_all_that_is_no_weight(dtype: torch.dtype, training: bool) -> None:
    network = network_of(ModelSpec("test_convnext", CLASSES), dtype).train(training)
    frozen = {"stages.0.0.gamma", "stages.2.1.norm.bias", "head.weight"}
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key not in frozen)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    result = fold(network, PREPROCESS, images_of(SPECS["test_convnext"]).double(), pixels="unit")
    assert_exact(result)
    assert_equal_states(network.state_dict(), before)
    assert network.training == result.network.training == training
    assert result.network.stages[0].training == training
    assert {key for key, parameter in result.network.named_parameters() if not parameter.requires_grad} == frozen
    assert {parameter.dtype for parameter in result.network.parameters()} == {dtype}
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in result.network.parameters())
    assert all(parameter.is_leaf for parameter in result.network.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_fold_keeps_the_device() -> None:
    spec = SPECS["test_convnext"]
    network = network_of(spec).cuda()
    result = fold(network, PREPROCESS, images_of(spec).cuda(), pixels="byte")
    assert_exact(result)
    assert {parameter.device.type for parameter in result.network.parameters()} == {"cuda"}
