"""How to train where the user did not say it: chosen by the number and the size of the images, and by what a training starts from.

The same data gives the same choice on every machine. Rates and epochs are those of `training_settings`, so that a training by a
verb is that of our recipes; what the papers do not tell, because nobody trains on so few images from scratch, was measured here.
"""

import dataclasses
import math

from convnext_deploy.config.fit import Augmentation, FitConfig, base_for
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.models.zoo.starter_recipe import recommended_fit
from convnext_deploy.models.zoo.training_settings import (
    FEW_IMAGES,
    RATE_BATCH_SIZE,
    data_size,
    settings_for_images,
    settings_for_size,
    size_of,
)

USUAL_SIZE = 224  # pixels
SMALL_DATA = 20_000  # images, up to which the rates below count
_STEPS_PER_EPOCH = 6  # at least, so that few images still take hundreds of steps
_SMALLEST_BATCH = 8
# From scratch, at batch 128. The rates of the papers are for hundreds of thousands of steps; small data has hundreds to
# thousands, in which networks learn little at them. Measured on the digits and on CIFAR-10 (recipes/cifar10.toml).
_SCRATCH_RATES = {
    **dict.fromkeys(("test", "zepto", "atto", "femto", "pico", "nano", "tiny"), 1e-3),
    **dict.fromkeys(("small", "base"), 5e-4),
}
# Side in pixels for images below so many from scratch: what they hold in detail nothing could be learned from anyway.
_SCRATCH_SIZES = ((FEW_IMAGES, 64), (SMALL_DATA, 128), (math.inf, USUAL_SIZE))
_FINE_STEM = 64  # pixels, below which the papers' stem of 4 leaves hardly any positions
# A pruned network knows its classes still, and its teacher is the dense one: as many epochs as fine-tuning takes in arXiv
# 2201.03545, table 6, with crops that keep most of what the teacher saw. Measured on CIFAR-10.
_RECOVERY_EPOCHS, _RECOVERY_WARMUP, _RECOVERY_RATES = 30, 0.02, 4
_RECOVERY_AUGMENTATION = Augmentation(crop_scale_min=0.4)
_QAT_RATE, _QAT_BATCH_SIZE = 5e-5, 512  # fine-tuning, arXiv 2201.03545, table 6
_QAT_STEPS, _QAT_EPOCHS, _MOST_QAT_EPOCHS = 200, 5, 30


def preset_fit(variant: str, images: int, *, from_weights: bool) -> FitConfig:
    """Return how to train a variant on so many images, from given weights or from scratch."""
    variant = resolve_variant(variant)
    # the test networks are smaller than atto, and trained as it is
    named = variant if settings_for_size(variant) is not None else "convnext_atto"
    ranges = settings_for_size(named)
    assert ranges is not None  # only the test networks lack them
    settings = settings_for_images(ranges, images)
    if not from_weights and images < SMALL_DATA:
        rate = _SCRATCH_RATES.get(size_of(variant), settings.learning_rate)
        settings = dataclasses.replace(settings, learning_rate=rate)
    batch_size = preset_batch(images)
    fit = recommended_fit(named, settings, data_size(images).augmentation, from_weights=from_weights)
    return with_batch(dataclasses.replace(fit, batch_size=batch_size), settings.learning_rate, RATE_BATCH_SIZE)


def preset_recovery(variant: str, images: int) -> FitConfig:
    """Return how a pruned network learns from the dense one what it has lost: all of its weights, in few epochs."""
    usual = preset_fit(variant, images, from_weights=True)
    epochs = min(usual.epochs, _RECOVERY_EPOCHS)
    return dataclasses.replace(
        usual,
        **dataclasses.asdict(_RECOVERY_AUGMENTATION),
        epochs=epochs,
        base_learning_rate=_RECOVERY_RATES * usual.linear_learning_rate,
        warmup_epochs=_RECOVERY_WARMUP * epochs,
        drop_path_rate=0.0,
        layer_decay=1.0,
        ema_decay=0.0,
    )


def with_batch(fit: FitConfig, rate: float, at: int) -> FitConfig:
    """Return settings with the learning rate for their batch: `rate` at a batch of `at`, scaled as in `base_for`."""
    return dataclasses.replace(fit, base_learning_rate=base_for(rate, at, fit.batch_size))


def preset_batch(images: int) -> int:
    """Return a power of two, at most 128, that leaves few images enough steps in an epoch."""
    return max(_SMALLEST_BATCH, min(RATE_BATCH_SIZE, 1 << max(0, (images // _STEPS_PER_EPOCH).bit_length() - 1)))


def preset_size(images: int, median_side: int) -> int:
    """Return the side in pixels of a network's input that is trained from scratch: small for few images, and for small ones."""
    usual = next(side for below, side in _SCRATCH_SIZES if images < below)
    return min(usual, max(32, -(-median_side // 32) * 32))


def preset_stem(image_size: int) -> int:
    """Return the kernel and stride of the stem for a network that is trained from scratch."""
    return 2 if image_size < _FINE_STEM else 4


def preset_qat(usual: FitConfig, images: int) -> FitConfig:
    """Return how to train with quantizers in place: `usual`, with a batch for so many images and at least some hundred steps."""
    batch_size = min(preset_batch(images), RATE_BATCH_SIZE // 2)
    epochs = math.ceil(_QAT_STEPS / max(1, images // batch_size))
    fit = dataclasses.replace(usual, batch_size=batch_size, epochs=min(_MOST_QAT_EPOCHS, max(_QAT_EPOCHS, epochs)))
    return with_batch(fit, _QAT_RATE, _QAT_BATCH_SIZE)
