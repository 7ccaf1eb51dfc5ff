"""Recommended training settings for each variant, and the variants that suit a number of images, as literal tables.

Ranges by the size of the network and of the data are this project's choice, and the middle of a range is used. Augmentation,
and how to start from published weights, are those of the papers and their code.
"""

import dataclasses
from dataclasses import dataclass

from convnext_deploy.config.fit import Augmentation
from convnext_deploy.models.variants import VARIANTS, resolve_variant

WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.999)  # of AdamW, for all sizes (arXiv 2201.03545, table 5)
RATE_BATCH_SIZE = 128  # for which the learning rates below are given
MIXUP_ALPHA, CUTMIX_ALPHA = 0.8, 1.0  # arXiv 2201.03545, table 5


@dataclass(frozen=True)
class Span:
    """A range of settings, ends included."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Half way between the ends."""
        return (self.low + self.high) / 2

    def __str__(self) -> str:
        ends = format_setting(self.low), format_setting(self.high)
        return ends[0] if self.low == self.high else " to ".join(ends)


def format_setting(value: float) -> str:
    """Return a number as people write it in recipes: `2e-4`, `0.1`, `300`."""
    if not 0 < value < 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


@dataclass(frozen=True)
class SettingRanges:
    """What suits a size of network or of data. `learning_rate` holds at batch 128. `mixup`: and CutMix."""

    learning_rate: Span
    drop_path_rate: Span
    epochs: Span
    warmup_epochs: Span
    label_smoothing: float
    mixup: bool


@dataclass(frozen=True)
class FineTuning:
    """What changes when a training starts from published weights. `source` and `note` tell where it is from."""

    layer_decay: float
    ema_decay: float
    source: str
    note: str


@dataclass(frozen=True)
class TrainingSettings:
    """What to train one variant with on data of one size: one value from each range of `SettingRanges`."""

    learning_rate: float
    drop_path_rate: float
    epochs: int
    warmup_epochs: float
    label_smoothing: float
    mixup: bool


def _for_size(learning_rate: Span, drop_path_rate: Span, *, mixup: bool = True) -> SettingRanges:
    # 300 epochs, 20 of them warm-up, and label smoothing 0.1: arXiv 2201.03545, table 5
    return SettingRanges(learning_rate, drop_path_rate, Span(300, 300), Span(20, 20), 0.1, mixup)


_V1_SMALLEST = _for_size(Span(2e-4, 4e-4), Span(0.0, 0.1), mixup=False)  # too small to need Mixup
# Version 2 has lower rates, and drop_path_rate of 0.1 to 0.6 by size: version 1's ranges within these bounds.
_V2_SMALLEST = _for_size(Span(3e-4, 3e-4), Span(0.1, 0.1), mixup=False)
_V1 = {
    **dict.fromkeys(("zepto", "atto", "femto", "pico", "nano"), _V1_SMALLEST),
    "tiny": _for_size(Span(3e-4, 3e-4), Span(0.1, 0.2)),
    "small": _for_size(Span(2e-4, 2e-4), Span(0.2, 0.4)),
    "base": _for_size(Span(1e-4, 1.5e-4), Span(0.3, 0.5)),
    "large": _for_size(Span(8e-5, 1e-4), Span(0.4, 0.6)),
    **dict.fromkeys(("xlarge", "xxlarge"), _for_size(Span(5e-5, 8e-5), Span(0.6, 0.8))),
}
_V2 = {
    **dict.fromkeys(("atto", "femto", "pico", "nano"), _V2_SMALLEST),
    "tiny": _for_size(Span(2e-4, 2e-4), Span(0.1, 0.2)),
    "small": _for_size(Span(2e-4, 2e-4), Span(0.2, 0.4)),
    "base": _for_size(Span(1e-4, 1e-4), Span(0.3, 0.5)),
    "large": _for_size(Span(8e-5, 1e-4), Span(0.4, 0.6)),
    "huge": _for_size(Span(8e-5, 8e-5), Span(0.6, 0.6)),
}

EMA_DECAY = 0.9999  # arXiv 2201.03545, table 5, and the official code of version 2
_OFFICIAL_V2 = "TRAINING.md of facebookresearch/ConvNeXt-V2"
_TABLE_6 = "arXiv 2201.03545, table 6"
_SMALLEST_FROM_WEIGHTS = FineTuning(0.9, EMA_DECAY, f"{_OFFICIAL_V2}, atto", "0.9 for each block")
_V1_FROM_WEIGHTS = {
    **dict.fromkeys(("zepto", "atto", "femto", "pico", "nano"), _SMALLEST_FROM_WEIGHTS),
    **dict.fromkeys(("tiny", "small", "base", "large"), FineTuning(0.7, 0.0, _TABLE_6, "weights of ImageNet-1k")),
    # their weights come from more than ImageNet-1k
    **dict.fromkeys(("xlarge", "xxlarge"), FineTuning(0.8, EMA_DECAY, _TABLE_6, "weights of ImageNet-22k")),
}
_V2_FROM_WEIGHTS = {
    **dict.fromkeys(("atto", "femto", "pico", "nano"), _SMALLEST_FROM_WEIGHTS),
    "tiny": FineTuning(0.9, EMA_DECAY, f"{_OFFICIAL_V2}, tiny", "0.9 for each of its 18 blocks"),
    "small": FineTuning(0.85, EMA_DECAY, f"{_OFFICIAL_V2}, tiny", "its 0.9 for 18 blocks is 0.9^1.5 for 12 groups"),
    **dict.fromkeys(
        ("base", "large", "huge"), FineTuning(0.6, EMA_DECAY, f"{_OFFICIAL_V2}, base", "0.6 for 12 groups")
    ),
}

# Files of `recipes/sizes/`: one for the sizes that share their settings.
_SIZE_RECIPES = {
    **dict.fromkeys(("zepto", "atto", "femto", "pico", "nano"), "zepto_to_nano"),
    **{size: size for size in ("tiny", "small", "base", "large")},
    **dict.fromkeys(("xlarge", "xxlarge"), "xlarge"),
}

# Tiers 1 to 4, best first: accuracy for the cost, and version 2 before 1. Tier 5 (ols, rms, hnf, mlp) and tier 6 (test networks)
# are not recommended and stand below.
TIERS = {
    1: ("convnextv2_base", "convnextv2_small", "convnextv2_tiny", "convnext_tiny"),
    2: ("convnextv2_nano", "convnextv2_pico", "convnext_nano", "convnext_small", "convnext_base"),
    3: ("convnextv2_large", "convnextv2_huge", "convnext_large", "convnext_xlarge", "convnext_xxlarge"),
    4: (
        "convnextv2_femto", "convnextv2_atto", "convnext_femto", "convnext_pico", "convnext_atto", "convnext_zepto_rms",
    ),
}  # fmt: skip
TIER_REASONS = {
    1: "tier 1 of 6: the best accuracy for its computation",
    2: "tier 2 of 6: very good where speed matters",
    3: "tier 3 of 6: heavy, for the last tenths of accuracy on very large data",
    4: "tier 4 of 6: for devices that can compute very little",
}
# Variants of a size overfit on fewer images than this: this project's choice.
LEAST_IMAGES = {"base": 50_000, **dict.fromkeys(("large", "huge", "xlarge", "xxlarge"), 1_000_000)}
# Without published weights a variant is trained from scratch, which the papers do on the 1.28 million images of ImageNet-1k.
LEAST_IMAGES_FROM_SCRATCH = 1_000_000


# Fewer images are learned by heart long before the epochs of small data are over: measured on 180 photographs of 10 classes.
FEW_IMAGES, FEW_EPOCHS, FEW_WARMUP_EPOCHS = 2_000, 40, 2.0


# Images in plenty: arXiv 2201.03545, table 5. Magnitude 9 of its RandAugment is on timm's scale to 10, which is 27 on the
# scale to 30 here (both rotate by 27 degrees), and timm skips each of its two operations in every second case: one is left.
STRONG_AUGMENTATION = Augmentation(
    augmentation_policy="randaugment",
    randaugment_ops=1,
    randaugment_magnitude=27,
    random_erasing_probability=0.25,
    mixup_alpha=MIXUP_ALPHA,
    cutmix_alpha=CUTMIX_ALPHA,
)
# Few and medical images: no Mixup; a crop keeps at least half, so that a finding stays in it, and exposure varies by a tenth.
MILD_AUGMENTATION = Augmentation(crop_scale_min=0.5, color_jitter=0.1)


@dataclass(frozen=True)
class DataSize:
    """Advice for data of up to `below` images: settings, the sizes that suit it, and all candidates, best first.

    `recipe`: path of the recipe for such data in the repository. `augmentation`: for networks that are not among the smallest.
    """

    name: str
    below: float
    suited: tuple[str, ...]
    settings: SettingRanges
    order: tuple[str, ...]
    augmentation: Augmentation
    recipe: str


def _order(*first: str) -> tuple[str, ...]:
    """Put some variants before the others, which keep the order of the tiers."""
    named = tuple(map(resolve_variant, first))
    return named + tuple(variant for tier in TIERS.values() for variant in tier if variant not in named)


# Settings and suited sizes for up to 20,000 images, for 50,000 to 200,000, which count up to a million, and for more. Order: the
# suited sizes first, version 2 before 1.
DATA_SIZES = (
    DataSize(
        "small",
        20_000,
        ("tiny", "nano", "small"),
        SettingRanges(Span(1e-4, 2e-4), Span(0.0, 0.1), Span(100, 150), Span(5, 10), 0.05, mixup=False),
        # the first four for about 6,000 images
        _order("v2-tiny", "v2-small", "tiny", "v2-nano", "nano", "small"),
        MILD_AUGMENTATION,
        "recipes/data/small_medical.toml",
    ),
    DataSize(
        "medium",
        1_000_000,
        ("small", "base"),
        SettingRanges(Span(2e-4, 3e-4), Span(0.2, 0.2), Span(200, 300), Span(10, 20), 0.1, mixup=True),
        _order("v2-base", "v2-small", "small", "base"),
        STRONG_AUGMENTATION,
        "recipes/data/medium.toml",
    ),
    DataSize(
        "large",
        float("inf"),
        ("large", "huge"),
        SettingRanges(Span(1e-4, 4e-4), Span(0.3, 0.7), Span(300, 300), Span(20, 20), 0.1, mixup=True),
        # xlarge and xxlarge ask for several GPUs, so they stand behind base
        _order("v2-large", "v2-huge", "large", "v2-base", "base", "xlarge", "xxlarge"),
        STRONG_AUGMENTATION,
        "recipes/data/imagenet.toml",
    ),
)


def size_of(variant: str) -> str:
    """Return the word for the size in a variant's name: `tiny` for `convnext_tiny_hnf`, `test` for the test networks."""
    return "test" if variant.startswith("test_") else variant.split("_")[1]


def settings_for_size(variant: str) -> SettingRanges | None:
    """Return the settings that suit a variant, None for the test networks.

    The modifiers ols, rms, hnf and mlp change nothing in them but what `settings_note` says.
    """
    return (_V1 if VARIANTS[variant].version == 1 else _V2).get(size_of(variant))


def fine_tuning(variant: str) -> FineTuning | None:
    """Return what changes when a variant starts from its published weights, None for the test networks."""
    return (_V1_FROM_WEIGHTS if VARIANTS[variant].version == 1 else _V2_FROM_WEIGHTS).get(size_of(variant))


def augmentation_for(augmentation: Augmentation, *, mixup: bool) -> Augmentation:
    """Return an augmentation without Mixup and CutMix where they are not wanted."""
    return augmentation if mixup else dataclasses.replace(augmentation, mixup_alpha=0.0, cutmix_alpha=0.0)


def size_recipe(variant: str) -> str | None:
    """Return the path in the repository of the recipe for a variant's size, None for the test networks."""
    name = "v2" if VARIANTS[variant].version == 2 else _SIZE_RECIPES.get(size_of(variant))
    return None if name is None else f"recipes/sizes/{name}.toml"


def settings_note(variant: str) -> str | None:
    """Return what a modifier in a variant's name changes, None: nothing."""
    if "_rms" in variant:
        return "learning rates up to 20 % higher work as well"
    return "slightly more stable with mixup and CutMix" if variant.endswith("_hnf") else None


def data_size(images: int) -> DataSize:
    """Return the advice for a number of training images."""
    return next(size for size in DATA_SIZES if images < size.below)


def combine(size: SettingRanges, data: SettingRanges) -> TrainingSettings:
    """Return one setting each from what suits the network and what suits the data.

    Rates that both ranges allow: the middle of them. Where they do not meet: the end of the lower range that is nearer to the
    other, since too high a learning rate destroys weights and too much stochastic depth underfits.
    """
    return TrainingSettings(
        learning_rate=_meet(size.learning_rate, data.learning_rate),
        drop_path_rate=_meet(size.drop_path_rate, data.drop_path_rate),
        epochs=round(data.epochs.middle),
        warmup_epochs=data.warmup_epochs.middle,
        label_smoothing=data.label_smoothing,
        mixup=size.mixup and data.mixup,
    )


def settings_for_images(size: SettingRanges, images: int) -> TrainingSettings:
    """Return what suits a network and a number of images, of which few are not looked at as often as many would be."""
    found = combine(size, data_size(images).settings)
    if images >= FEW_IMAGES:
        return found
    return dataclasses.replace(found, epochs=FEW_EPOCHS, warmup_epochs=FEW_WARMUP_EPOCHS)


def _meet(a: Span, b: Span) -> float:
    low, high = max(a.low, b.low), min(a.high, b.high)
    return round(Span(low, high).middle if low <= high else high, 10)  # no trace of binary fractions such as 0.6499999
