"""The ranking follows the size of the data and the memory of the GPU, and says why."""

from __future__ import annotations

from typing import Any

import pytest

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.models.zoo.ranking import Candidate, rank, training_memory

UNUSUAL = ("_ols", "_hnf", "_mlp", "atto_rms", "test_")


def names(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.variant for candidate in candidates]


def reasons_against(images: int, gpu_memory_gb: float | None = None) -> dict[str, str]:
    return {exclusion.variant: exclusion.reason for exclusion in rank(images, 4, gpu_memory_gb=gpu_memory_gb)[1]}


def test_rank_of_6000_images_is_version_2_tiny_first_and_nothing_above_small() -> None:
    candidates, _ = rank(6000, 4)
    assert names(candidates)[:5] == [
        "convnextv2_tiny",
        "convnext_tiny",
        "convnextv2_nano",
        "convnext_nano",
        "convnext_small",
    ]
    assert not {name for name in names(candidates) if any(size in name for size in ("base", "large", "huge"))}


def test_rank_of_medium_data_starts_with_small_and_base() -> None:
    assert names(rank(100_000, 10)[0])[:3] == ["convnextv2_base", "convnext_small", "convnext_base"]


def test_rank_of_imagenet_starts_with_large_and_huge() -> None:
    assert names(rank(1_281_167, 1000)[0])[:3] == ["convnextv2_large", "convnextv2_huge", "convnext_large"]


def test_rank_allows_base_from_50_thousand_images_and_larger_ones_from_a_million() -> None:
    assert reasons_against(49_999)["convnext_base"] == "too large for fewer than 50,000 images (overfitting)"
    assert "convnextv2_base" in names(rank(50_000, 4)[0])
    assert reasons_against(999_999)["convnext_large"] == "too large for fewer than 1,000,000 images (overfitting)"
    assert {"convnext_large", "convnext_xxlarge", "convnextv2_huge"} <= set(names(rank(1_000_000, 4)[0]))


def test_rank_leaves_out_what_would_start_from_scratch_until_there_are_enough_images() -> None:
    assert reasons_against(999_999)["convnextv2_small"].startswith("no published weights to start from")
    small = next(c for c in rank(1_000_000, 4)[0] if c.variant == "convnextv2_small")
    assert "no published weights: trained from scratch" in small.reasons


@pytest.mark.parametrize("images", [4, 6000, 30_000, 500_000, 2_000_000])
@pytest.mark.parametrize("gpu_memory_gb", [None, 2.0, 12.0, 80.0])
def test_rank_gives_every_variant_one_verdict_with_a_reason(images: int, gpu_memory_gb: float | None) -> None:
    candidates, exclusions = rank(images, 4, gpu_memory_gb=gpu_memory_gb)
    assert sorted([*names(candidates), *(exclusion.variant for exclusion in exclusions)]) == sorted(VARIANTS)
    assert all(reason for candidate in candidates for reason in candidate.reasons)
    assert all(exclusion.reason for exclusion in exclusions)
    assert not [name for name in names(candidates) if any(part in name for part in UNUSUAL)]


def test_rank_says_why_special_variants_are_left_out() -> None:
    against = reasons_against(6000)
    assert against["convnext_tiny_hnf"] == "experimental, for comparisons only (tier 5 of 6)"
    assert against["test_convnext3"] == "for timm's own tests only (tier 6 of 6)"


@pytest.mark.parametrize("gpu_memory_gb", [1.8, 2.0, 4.0, 6.0, 12.0, 24.0, 80.0])
@pytest.mark.parametrize("images", [6000, 2_000_000])
def test_rank_takes_the_largest_power_of_two_that_fits(images: int, gpu_memory_gb: float) -> None:
    candidates, exclusions = rank(images, 10, gpu_memory_gb=gpu_memory_gb)
    for candidate in candidates:
        spec, checkpointing = ModelSpec(candidate.variant, 10), candidate.gradient_checkpointing
        batch = candidate.batch_size
        assert batch in (8, 16, 32, 64, 128, 256)
        assert candidate.memory_gib == training_memory(spec, 224, batch, gradient_checkpointing=checkpointing)
        assert candidate.memory_gib <= gpu_memory_gb
        twice = training_memory(spec, 224, 2 * batch, gradient_checkpointing=checkpointing)
        assert batch == 256 or twice > gpu_memory_gb
        assert checkpointing == (training_memory(spec, 224, 8) > gpu_memory_gb)
        assert any("gradient checkpointing" in reason for reason in candidate.reasons) == checkpointing
    for exclusion in exclusions:
        if exclusion.reason.startswith("needs about"):
            assert (
                training_memory(ModelSpec(exclusion.variant, 10), 224, 8, gradient_checkpointing=True) > gpu_memory_gb
            )


def test_rank_needs_gradient_checkpointing_for_large_networks_on_small_gpus() -> None:
    large = next(c for c in rank(2_000_000, 10, gpu_memory_gb=5)[0] if c.variant == "convnextv2_large")
    assert (large.batch_size, large.gradient_checkpointing) == (8, True)
    against = reasons_against(2_000_000, gpu_memory_gb=5)["convnext_xxlarge"]
    assert against.startswith("needs about 15.")
    assert against.endswith("GB even with gradient checkpointing and batch 8")


def test_rank_has_no_candidate_when_nothing_fits() -> None:
    assert rank(6000, 4, gpu_memory_gb=1.0)[0] == ()


@pytest.mark.parametrize(("images", "batch"), [(4, 4), (7, 4), (100, 64), (6000, 128)])
def test_rank_without_memory_limit_takes_batch_128_or_what_the_images_fill(images: int, batch: int) -> None:
    assert {candidate.batch_size for candidate in rank(images, 4)[0]} == {batch}


def test_rank_fits_fewer_larger_images() -> None:
    small, large = (rank(6000, 4, gpu_memory_gb=12, image_size=size)[0][0] for size in (224, 448))
    assert (small.variant, large.variant) == ("convnextv2_tiny", "convnextv2_tiny")
    assert (small.batch_size, large.batch_size) == (64, 16)


def test_training_memory_is_16_bytes_per_parameter_and_a_reserve_for_an_empty_batch() -> None:
    spec = ModelSpec("convnext_tiny", 1000)
    assert training_memory(spec, 224, 0) == pytest.approx(1.5 + 28_589_128 * 16 / 2**30)


def test_rank_says_that_weights_of_version_2_are_not_for_commercial_use() -> None:
    by_name = {candidate.variant: " ".join(candidate.reasons) for candidate in rank(6000, 4)[0]}
    assert "not for commercial use" in by_name["convnextv2_tiny"]
    assert "commercial" not in by_name["convnext_tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 6000, "classes": 1}, "classes = 1 is out of range; expected >= 2"),
        ({"images": 3, "classes": 4}, "images = 3 is out of range; expected >= 4, one for each class"),
        ({"images": 0, "classes": 2}, "images = 0 is out of range"),
        ({"images": 9, "classes": 2, "gpu_memory_gb": 0.0}, "gpu_memory_gb = 0.0 is out of range; expected > 0"),
        ({"images": 9, "classes": 2, "gpu_memory_gb": -1.0}, "gpu_memory_gb = -1.0 is out of range"),
        ({"images": 9, "classes": 2, "image_size": 31}, "image_size = 31 is out of range; expected >= 32"),
    ],
)
def test_rank_refuses_numbers_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rank(**arguments)
