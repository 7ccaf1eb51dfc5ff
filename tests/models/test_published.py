"""The table of published weights agrees with timm's configuration of them and with the figures that were published."""

from __future__ import annotations

import pytest
import timm
from timm.models import get_pretrained_cfg

from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.models.zoo.published import PUBLISHED, Published, default_evaluation

WITH_WEIGHTS = {variant: published for variant, published in PUBLISHED.items() if published is not None}
# Top-1 in percent as timm measured it under the evaluation setting of the table: results-imagenet.csv at commit 7479d451,
# for zepto the release notes, for the test networks their model cards. The official figures differ by a rounding.
MEASURED = {
    "convnext_zepto_rms.ra4_e3600_r224_in1k": 72.81,
    "convnext_zepto_rms_ols.ra4_e3600_r224_in1k": 73.20,
    "convnext_atto.d2_in1k": 75.668,
    "convnext_atto_ols.a2_in1k": 75.902,
    "convnext_femto.d1_in1k": 77.508,
    "convnext_femto_ols.d1_in1k": 77.844,
    "convnext_pico.d1_in1k": 79.516,
    "convnext_pico_ols.d1_in1k": 79.542,
    "convnext_nano.d1h_in1k": 80.762,
    "convnext_nano_ols.d1h_in1k": 80.906,
    "convnext_tiny.fb_in1k": 82.066,
    "convnext_tiny_hnf.a2h_in1k": 82.230,
    "convnext_small.fb_in1k": 83.144,
    "convnext_base.fb_in1k": 83.834,
    "convnext_large.fb_in1k": 84.298,
    "convnext_large_mlp.clip_laion2b_augreg_ft_in1k": 87.336,
    "convnext_xlarge.fb_in22k_ft_in1k": 86.970,
    "convnext_xxlarge.clip_laion2b_soup_ft_in1k": 88.622,
    "convnextv2_atto.fcmae_ft_in1k": 76.646,
    "convnextv2_femto.fcmae_ft_in1k": 78.484,
    "convnextv2_pico.fcmae_ft_in1k": 80.304,
    "convnextv2_nano.fcmae_ft_in1k": 81.856,
    "convnextv2_tiny.fcmae_ft_in1k": 82.948,
    "convnextv2_base.fcmae_ft_in1k": 84.888,
    "convnextv2_large.fcmae_ft_in1k": 85.762,
    "convnextv2_huge.fcmae_ft_in1k": 86.260,
    "test_convnext.r160_in1k": 47.764,
    "test_convnext2.r160_in1k": 53.51,
    "test_convnext3.r160_in1k": 53.328,
}
# What the papers and timm print at 224 pixels.
OFFICIAL = {
    "convnext_tiny": 82.1, "convnext_small": 83.1, "convnext_base": 83.8, "convnext_large": 84.3,
    "convnextv2_atto": 76.7, "convnextv2_femto": 78.5, "convnextv2_pico": 80.3, "convnextv2_nano": 81.9,
    "convnextv2_tiny": 83.0, "convnextv2_base": 84.9, "convnextv2_large": 85.8, "convnextv2_huge": 86.3,
    "convnext_atto": 75.7, "convnext_femto": 77.5, "convnext_pico": 79.5, "convnext_nano": 80.8, "convnext_zepto_rms": 72.8,
}  # fmt: skip


def published(variant: str) -> Published:
    found = PUBLISHED[variant]
    assert found is not None
    return found


def test_published_has_every_variant_in_the_order_of_the_table() -> None:
    assert list(PUBLISHED) == list(VARIANTS)


def test_weights_are_of_their_variant() -> None:
    assert {variant: entry.weights.split(".")[0] for variant, entry in WITH_WEIGHTS.items()} == {
        variant: variant for variant in WITH_WEIGHTS
    }


def test_only_variants_without_weights_in_timm_have_none() -> None:
    without = [variant for variant, entry in PUBLISHED.items() if entry is None]
    assert without == ["convnext_atto_rms", "convnextv2_small"]
    assert [variant for variant in VARIANTS if not timm.list_pretrained(f"{variant}.*")] == without


@pytest.mark.parametrize("variant", WITH_WEIGHTS)
def test_evaluation_is_that_of_timm(variant: str) -> None:
    config = get_pretrained_cfg(published(variant).weights)
    assert config is not None
    evaluation = published(variant).evaluation
    assert (3, evaluation.image_size, evaluation.image_size) == config.input_size
    names = ("crop_pct", "interpolation", "crop_mode", "mean", "std")
    assert {name: getattr(evaluation, name) for name in names} == {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("variant", WITH_WEIGHTS)
def test_top1_is_what_timm_measured(variant: str) -> None:
    entry = published(variant)
    assert entry.top1 == round(entry.top1, 1)
    assert entry.top1 == pytest.approx(MEASURED[entry.weights], abs=0.06)


@pytest.mark.parametrize(("variant", "top1"), OFFICIAL.items())
def test_top1_is_official_figure_where_there_is_one(variant: str, top1: float) -> None:
    assert published(variant).top1 == top1
    assert published(variant).evaluation.image_size == 224


def test_weights_of_version_2_are_not_for_commercial_use() -> None:
    assert {variant for variant, entry in WITH_WEIGHTS.items() if entry.non_commercial} == {
        variant for variant in WITH_WEIGHTS if VARIANTS[variant].version == 2
    }


def test_default_evaluation_is_the_published_one() -> None:
    assert default_evaluation("convnext_nano") == Preprocess(224, 0.95, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    assert default_evaluation("v2-tiny") == published("convnextv2_tiny").evaluation


@pytest.mark.parametrize("variant", ["convnext_atto_rms", "v2-small"])
def test_default_evaluation_is_the_usual_one_without_weights(variant: str) -> None:
    assert default_evaluation(variant) == Preprocess(224, 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD, "center")


def test_default_evaluation_refuses_unknown_variant() -> None:
    with pytest.raises(RecipeError, match=r"unknown model 'tinny'\. Did you mean 'tiny'"):
        default_evaluation("tinny")
