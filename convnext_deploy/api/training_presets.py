"""The training settings of a verb: presets for the data, and what the user overrides."""

from __future__ import annotations

import dataclasses

from convnext_deploy.api.options import Options
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.model import ModelConfig
from convnext_deploy.data.datasets import BUILT_IN, Data
from convnext_deploy.models.variants import resolve_variant

# The digits are few and simple: high learning rates for their few steps, crops that keep the digit, and no mirror images,
# which are other signs.
DIGITS_FIT = FitConfig(
    epochs=15,
    batch_size=64,
    base_learning_rate=0.064,
    warmup_epochs=2.0,
    drop_path_rate=0.0,
    crop_scale_min=0.7,
    flip_probability=0.0,
)


DIGITS_TEACHER_FIT = dataclasses.replace(DIGITS_FIT, epochs=10, base_learning_rate=0.032)


DIGITS_QAT_FIT = dataclasses.replace(
    DIGITS_FIT, epochs=5, base_learning_rate=0.0064, warmup_epochs=0.5, label_smoothing=0.0
)


# Fine-tuning as in arXiv 2201.03545, table 6: 30 epochs at 5e-5 and batch 512, which is 4e-4 at batch 4096.
FINE_TUNE_FIT = FitConfig(epochs=30, base_learning_rate=4e-4, warmup_epochs=0.0)


def fit_preset(data: Data, digits: FitConfig, source: Artifact | None) -> FitConfig:
    """Return the training settings for the data: those of the digits, of fine-tuning, or of the papers."""
    if data.name == BUILT_IN:
        return digits
    return FitConfig() if source is None else FINE_TUNE_FIT


def override_fit(fit: FitConfig, options: Options) -> FitConfig:
    """Put what the user asked for in the place of the preset."""
    names = (
        "epochs",
        "batch_size",
        "base_learning_rate",
        "flip_probability",
        "drop_path_rate",
        "head_dropout",
        "gradient_checkpointing",
        "compile",
        "augmentation_epochs",
        "augmentation_seed",
    )
    return dataclasses.replace(fit, **{name: value for name in names if (value := getattr(options, name)) is not None})


def model_config(
    name: str, options: Options, data: Data, start: Artifact | None, weights: str | None = None
) -> ModelConfig:
    """Return the network to train: that of the weights to start from when there are any, otherwise as asked for.

    Args:
        name: variant.
        options: what the user asked for.
        data: decides the image size when nobody else does.
        start: the opened weights.
        weights: where they lie, if the stage itself is to load them.
    """
    resolve_variant(name)
    if start is not None:
        preprocess, spec = start.preprocess, start.model
        return ModelConfig(
            name,
            preprocess.image_size,
            options.patch_size or spec.patch_size,
            spec.in_channels,
            preprocess.crop_pct,
            options.head_hidden_size,
            weights=weights,
        )
    image_size = options.image_size or (32 if data.name == BUILT_IN else ModelConfig.image_size)
    return ModelConfig(
        name,
        image_size,
        options.patch_size or ModelConfig.patch_size,
        crop_pct=options.crop_pct,
        head_hidden_size=options.head_hidden_size,
    )
