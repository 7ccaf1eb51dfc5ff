"""The tables of advice are complete, and hold the values chosen."""

from __future__ import annotations

import dataclasses

import pytest

from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.models.zoo.ranking import tier_of
from convnext_deploy.models.zoo.training_settings import (
    DATA_SIZES,
    TIER_REASONS,
    TIERS,
    DataSize,
    SettingRanges,
    Span,
    combine,
    data_size,
    format_setting,
    settings_for_size,
    settings_note,
)

RECOMMENDED = [variant for tier in TIERS.values() for variant in tier]
UNUSUAL = ("_ols", "_hnf", "_mlp", "atto_rms", "test_")


def ranges(rate: Span, drop_path: Span, *, label_smoothing: float = 0.1, mixup: bool = True) -> SettingRanges:
    return SettingRanges(rate, drop_path, Span(100, 150), Span(5, 10), label_smoothing, mixup)


def test_tiers_hold_every_usual_variant_once() -> None:
    assert sorted(RECOMMENDED) == sorted(v for v in VARIANTS if not any(part in v for part in UNUSUAL))
    assert set(TIER_REASONS) == set(TIERS)
    assert tier_of("convnextv2_tiny") == 1
    assert tier_of("convnext_atto_ols") is None


@pytest.mark.parametrize("size", DATA_SIZES, ids=lambda size: size.name)
def test_order_of_every_data_size_holds_every_recommended_variant_once(size: DataSize) -> None:
    assert sorted(size.order) == sorted(RECOMMENDED)


@pytest.mark.parametrize(
    ("variant", "rate", "drop_path"),
    [
        ("convnext_zepto_rms", Span(2e-4, 4e-4), Span(0.0, 0.1)),
        ("convnext_nano_ols", Span(2e-4, 4e-4), Span(0.0, 0.1)),
        ("convnext_tiny_hnf", Span(3e-4, 3e-4), Span(0.1, 0.2)),
        ("convnext_small", Span(2e-4, 2e-4), Span(0.2, 0.4)),
        ("convnext_base", Span(1e-4, 1.5e-4), Span(0.3, 0.5)),
        ("convnext_large_mlp", Span(8e-5, 1e-4), Span(0.4, 0.6)),
        ("convnext_xxlarge", Span(5e-5, 8e-5), Span(0.6, 0.8)),
        ("convnextv2_pico", Span(3e-4, 3e-4), Span(0.1, 0.1)),
        ("convnextv2_small", Span(2e-4, 2e-4), Span(0.2, 0.4)),
        ("convnextv2_huge", Span(8e-5, 8e-5), Span(0.6, 0.6)),
    ],
)
def test_settings_for_size_are_those_chosen(variant: str, rate: Span, drop_path: Span) -> None:
    settings = settings_for_size(variant)
    assert settings is not None
    assert (settings.learning_rate, settings.drop_path_rate) == (rate, drop_path)
    assert (settings.epochs, settings.warmup_epochs) == (Span(300, 300), Span(20, 20))


def test_only_test_networks_have_no_settings_and_only_the_smallest_no_mixup() -> None:
    assert [v for v in VARIANTS if settings_for_size(v) is None] == [
        "test_convnext",
        "test_convnext2",
        "test_convnext3",
    ]
    without = {v for v in VARIANTS if (settings := settings_for_size(v)) is not None and not settings.mixup}
    assert without == {v for v in VARIANTS if any(size in v for size in ("zepto", "atto", "femto", "pico", "nano"))}


def test_settings_note_is_for_modifiers_only() -> None:
    noted = {variant for variant in VARIANTS if settings_note(variant) is not None}
    assert noted == {"convnext_zepto_rms", "convnext_zepto_rms_ols", "convnext_atto_rms", "convnext_tiny_hnf"}


@pytest.mark.parametrize(
    ("images", "name"),
    [(2, "small"), (19_999, "small"), (20_000, "medium"), (999_999, "medium"), (1_000_000, "large"), (10**9, "large")],
)
def test_data_size_changes_at_20_thousand_and_a_million(images: int, name: str) -> None:
    assert data_size(images).name == name


def test_settings_of_small_data_are_those_chosen() -> None:
    expected = SettingRanges(Span(1e-4, 2e-4), Span(0.0, 0.1), Span(100, 150), Span(5, 10), 0.05, mixup=False)
    assert data_size(6000).settings == expected


@pytest.mark.parametrize(
    ("size", "data", "expected"),
    [
        (Span(2e-4, 4e-4), Span(1e-4, 3e-4), 2.5e-4),  # the middle of what both allow
        (Span(2e-4, 4e-4), Span(1e-4, 2e-4), 2e-4),  # they touch
        (Span(3e-4, 3e-4), Span(1e-4, 2e-4), 2e-4),  # apart: the upper end of the lower one
        (Span(1e-4, 1.5e-4), Span(2e-4, 3e-4), 1.5e-4),
    ],
)
def test_combine_takes_the_rate_that_both_allow(size: Span, data: Span, expected: float) -> None:
    settings = combine(ranges(size, Span(0, 0)), ranges(data, Span(0, 0)))
    assert settings.learning_rate == pytest.approx(expected, rel=1e-12)


def test_combine_takes_schedule_and_smoothing_from_the_data_and_mixup_where_both_want_it() -> None:
    size = ranges(Span(1e-4, 1e-4), Span(0.6, 0.8))
    data = dataclasses.replace(ranges(Span(1e-4, 1e-4), Span(0.3, 0.7), label_smoothing=0.05), warmup_epochs=Span(5, 8))
    settings = combine(dataclasses.replace(size, epochs=Span(300, 300)), data)
    assert (settings.epochs, settings.warmup_epochs, settings.label_smoothing) == (125, 6.5, 0.05)
    assert settings.drop_path_rate == 0.65  # exactly, without the rest of a binary fraction
    assert settings.mixup
    assert not combine(dataclasses.replace(size, mixup=False), data).mixup
    assert not combine(size, dataclasses.replace(data, mixup=False)).mixup


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-4, "2e-4"), (1.25e-4, "1.25e-4"), (8e-5, "8e-5"), (0.0, "0"), (0.05, "0.05"), (300, "300"), (1e-3, "0.001")],
)
def test_format_setting_writes_small_numbers_with_an_exponent(value: float, text: str) -> None:
    assert format_setting(value) == text


def test_span_is_written_as_one_number_when_it_is_one() -> None:
    assert (str(Span(2e-4, 2e-4)), str(Span(0.1, 0.2))) == ("2e-4", "0.1 to 0.2")
