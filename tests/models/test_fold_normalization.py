"""Mean, std and 1/255 go into the stem where that is exact, and the transform says what the network then takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.data.transforms import normalize
from convnext_deploy.models.fold import fold
from convnext_deploy.models.variants import VARIANTS
from tests.models.test_fold import (
    CLASSES,
    PREPROCESS,
    SPECS,
    assert_exact,
    changed,
    images_of,
    moved,
    network_of,
    preprocess_of,
)
from tests.shared import heavy_except

STEM = {"downsample_layers.0.0.weight", "downsample_layers.0.0.bias"}
WHITE: dict[Any, float] = {"unit": 1.0, "byte": 255.0}
OVERLAPPING = [variant for variant, row in VARIANTS.items() if row.stem != "patch"]
PATCHES: list[Any] = ["test_convnext", "convnext_atto_rms", "convnext_zepto_rms", "convnextv2_atto", "grey", "patch-8"]
PATCHES = [*PATCHES, "grey-v2-patch-2", pytest.param("hidden-hnf", marks=pytest.mark.heavy)]


def photos(channels: int, side: int = 70) -> Tensor:
    """Return images `(N, side, side, channels)` uint8, one of them all black and one white; no multiple of the patches."""
    pixels = torch.randint(0, 256, (4, side, side, channels), generator=torch.Generator().manual_seed(3))
    pixels[1], pixels[2] = 0, 255
    return pixels.to(torch.uint8)


@pytest.mark.parametrize("pixels", heavy_except(("byte",), WHITE))
@pytest.mark.parametrize("name", PATCHES)
def test_normalization_goes_into_a_stem_without_padding(name: str, pixels: Any) -> None:
    spec = SPECS[name]
    network, preprocess = network_of(spec, torch.float64), preprocess_of(spec)
    result = fold(network, preprocess, images_of(spec), pixels=pixels, rewrites=())
    assert_exact(result)
    assert changed(network, result.network) == STEM
    assert [(step.rewrite, step.source, step.target) for step in result.certificate.folded] == [
        ("normalization", "mean and std", "downsample_layers.0.0")
    ]
    assert result.certificate.kept == ()
    # without our own arithmetic: what the loader would give to each
    values = photos(spec.in_channels).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(part, dtype=torch.float64).view(-1, 1, 1) for part in (preprocess.mean, preprocess.std))
    assert moved(network, result.network, (values - mean) / std, WHITE[pixels] * values) <= 1e-12


@pytest.mark.parametrize("pixels", heavy_except(("byte",), WHITE))
@pytest.mark.parametrize("name", PATCHES)
def test_loaders_give_the_folded_network_what_it_takes(name: str, pixels: Any) -> None:
    spec = SPECS[name]
    network, preprocess = network_of(spec), preprocess_of(spec)
    result = fold(network, preprocess, pixels=pixels)
    expected = dataclasses.replace(
        preprocess, mean=(0.0,) * spec.in_channels, std=(1 / WHITE[pixels],) * spec.in_channels
    )
    assert result.preprocess == expected
    images = photos(spec.in_channels)
    taken = normalize(images, result.preprocess)
    torch.testing.assert_close(taken, images.permute(0, 3, 1, 2) * (WHITE[pixels] / 255), rtol=1e-6, atol=0)
    assert moved(network, result.network, normalize(images, preprocess), taken) <= 1e-5


@pytest.mark.parametrize("pixels", heavy_except(("byte",), WHITE))
@pytest.mark.parametrize("variant", OVERLAPPING)
def test_normalization_stays_when_the_stem_pads(variant: str, pixels: Any) -> None:
    network = network_of(ModelSpec(variant, CLASSES))
    result = fold(network, PREPROCESS, pixels=pixels)
    assert_exact(result)
    assert not changed(network, result.network) & STEM
    assert result.preprocess == PREPROCESS
    (kept,) = [kept for kept in result.certificate.kept if kept.rewrite == "normalization"]
    assert kept.source == "mean and std"
    assert "pads with zeros" in kept.reason
    assert all(step.rewrite != "normalization" for step in result.certificate.folded)


def test_folding_the_mean_into_a_padded_stem_would_move_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(ModelSpec("convnext_atto_ols", CLASSES))
    result = fold(network, PREPROCESS, pixels="unit")
    assert result.certificate.holds
    padding = type(network.downsample_layers[0][0].padding)  # type: ignore[index]  # a Stem
    assert padding is tuple


@pytest.mark.parametrize("pixels", heavy_except(("byte",), WHITE))
def test_std_goes_into_a_padded_stem_when_the_mean_is_0(pixels: Any) -> None:
    spec = ModelSpec("convnext_atto_ols", CLASSES)
    network, preprocess = network_of(spec, torch.float64), dataclasses.replace(PREPROCESS, mean=(0.0, 0.0, 0.0))
    result = fold(network, preprocess, images_of(spec), pixels=pixels, rewrites=())
    assert_exact(result)
    assert changed(network, result.network) == {"downsample_layers.0.0.weight"}
    assert result.preprocess.std == (1 / WHITE[pixels],) * 3


def test_pixels_of_one_kind_become_those_of_the_other() -> None:
    spec = SPECS["test_convnext"]
    network = network_of(spec, torch.float64)
    first = fold(network, PREPROCESS, pixels="byte")
    second = fold(first.network, first.preprocess, images_of(spec), pixels="unit")
    assert_exact(second)
    assert second.preprocess == fold(network, PREPROCESS, pixels="unit").preprocess
    values = photos(3).permute(0, 3, 1, 2).double()
    assert moved(first.network, second.network, values, values / 255) <= 1e-12


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (0.5, 1.0, 1.0)])
def test_normalization_that_is_none_stays(std: tuple[float, float, float]) -> None:
    network = network_of(SPECS["test_convnext"])
    preprocess = Preprocess(64, 1.0, "bicubic", (0.0, 0.0, 0.0), std)
    result = fold(network, preprocess, pixels="unit", rewrites=())
    assert_exact(result)
    expected = set() if std == (1.0, 1.0, 1.0) else {"downsample_layers.0.0.weight"}
    assert changed(network, result.network) == expected
    assert [kept.reason for kept in result.certificate.kept] == ([] if expected else ["it already changes nothing"])
