"""The table of variants: sizes, names and what is built from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.convnext import Block
from convnext_deploy.models.layers import GRN
from convnext_deploy.models.variants import VARIANTS, build_model, complete_spec, resolve_variant, short_name

# Millions of parameters with 1000 classes: the papers' tables, and timm's for what is not in them.
MILLIONS = {
    "convnext_zepto_rms": 2.16,
    "convnext_zepto_rms_ols": 2.16,
    "convnext_atto": 3.70,
    "convnext_atto_ols": 3.70,
    "convnext_atto_rms": 3.69,
    "convnext_femto": 5.22,
    "convnext_femto_ols": 5.23,
    "convnext_pico": 9.05,
    "convnext_pico_ols": 9.06,
    "convnext_nano": 15.59,
    "convnext_nano_ols": 15.65,
    "convnext_tiny": 28.59,
    "convnext_tiny_hnf": 28.59,
    "convnext_small": 50.22,
    "convnext_base": 88.59,
    "convnext_large": 197.77,
    "convnext_large_mlp": 200.13,
    "convnext_xlarge": 350.20,
    "convnext_xxlarge": 846.47,
    "convnextv2_atto": 3.71,
    "convnextv2_femto": 5.23,
    "convnextv2_pico": 9.07,
    "convnextv2_nano": 15.62,
    "convnextv2_tiny": 28.64,
    "convnextv2_small": 50.32,
    "convnextv2_base": 88.72,
    "convnextv2_large": 197.96,
    "convnextv2_huge": 660.29,
    "test_convnext": 0.27,
    "test_convnext2": 0.48,
    "test_convnext3": 0.47,
}


@pytest.mark.parametrize(("variant", "millions"), MILLIONS.items())
def test_build_model_has_published_number_of_parameters(variant: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_model(ModelSpec(variant, 1000))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_variants_are_those_whose_size_is_known() -> None:
    assert set(VARIANTS) == set(MILLIONS)


@pytest.mark.parametrize(("name", "version"), [("pico", 1), ("v2-pico", 2)])
def test_build_model_uses_layer_scale_in_v1_and_grn_in_v2(name: str, version: int) -> None:
    network = build_model(ModelSpec(name, 4), layer_scale_init=0.125)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    assert len(blocks) == sum(VARIANTS[resolve_variant(name)].depths)
    for block in blocks:
        assert (block.gamma is not None) == (version == 1)
        assert isinstance(block.grn, GRN) == (version == 2)
        assert block.gamma is None or block.gamma.unique().tolist() == [0.125]


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("tiny", "convnext_tiny"),
        ("v2-tiny", "convnextv2_tiny"),
        ("v2_tiny", "convnextv2_tiny"),
        ("convnext_tiny", "convnext_tiny"),
        ("convnext-tiny", "convnext_tiny"),
        ("convnextv2_tiny", "convnextv2_tiny"),
        ("ConvNeXt-Base", "convnext_base"),
        ("V2-Huge", "convnextv2_huge"),
        ("huge", "convnextv2_huge"),
        ("xlarge", "convnext_xlarge"),
        ("xxlarge", "convnext_xxlarge"),
        ("tiny-hnf", "convnext_tiny_hnf"),
        ("large_mlp", "convnext_large_mlp"),
        ("zepto-rms-ols", "convnext_zepto_rms_ols"),
        ("test-convnext2", "test_convnext2"),
    ],
)
def test_resolve_variant_understands_short_and_full_names(name: str, full: str) -> None:
    assert resolve_variant(name) == full


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("convnext_tiny", "tiny"),
        ("convnextv2_tiny", "v2-tiny"),
        ("convnext_zepto_rms_ols", "zepto_rms_ols"),
        ("test_convnext", "test_convnext"),
    ],
)
def test_short_name_is_what_people_type(full: str, short: str) -> None:
    assert short_name(full) == short


def test_resolve_variant_understands_every_short_name() -> None:
    assert [resolve_variant(short_name(name)) for name in VARIANTS] == list(VARIANTS)


@pytest.mark.parametrize(
    ("variant", "changes", "expected"),
    [
        ("tiny", {}, ("gelu", 1e-6, None)),
        ("xxlarge", {}, ("gelu", 1e-5, None)),
        ("large_mlp", {}, ("gelu", 1e-6, 1536)),
        ("large_mlp", {"head_hidden_size": 0}, ("gelu", 1e-6, None)),
        ("tiny", {"head_hidden_size": 9, "activation": "relu", "norm_eps": 0.0}, ("relu", 0.0, 9)),
        ("test_convnext", {"activation": "gelu", "norm_eps": 1e-6}, ("gelu", 1e-6, None)),
    ],
)
def test_complete_spec_changes_what_the_spec_says(
    variant: str, changes: dict[str, Any], expected: tuple[str, float, int | None]
) -> None:
    row = complete_spec(ModelSpec(variant, 10, **changes))
    assert (row.activation, row.norm_eps, row.head_hidden_size) == expected
    table = VARIANTS[resolve_variant(variant)]
    assert (row.depths, row.dims, row.norm, row.stem) == (table.depths, table.dims, table.norm, table.stem)


def test_resolve_variant_keeps_full_names() -> None:
    assert [resolve_variant(name) for name in VARIANTS] == list(VARIANTS)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("tinny", "tiny"), ("v2-tinyy", "v2-tiny"), ("convnext_bas", "convnext_base"), ("v2-xlarge", "v2-large")],
)
def test_resolve_variant_suggests_nearest_name_when_unknown(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_variant(name)
    message = str(caught.value)
    assert f"unknown model '{name}'. Did you mean '{nearest}'?" in message
    assert "v2-huge" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["resnet50", "", "v2-", "v2-v2-tiny"])
def test_resolve_variant_lists_known_models_when_nothing_is_near(name: str) -> None:
    with pytest.raises(RecipeError, match="Known models: zepto_rms, zepto_rms_ols, atto, "):
        resolve_variant(name)
