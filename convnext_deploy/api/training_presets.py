"""The training settings of a verb: presets for the data, and what the user overrides."""

import dataclasses
from pathlib import Path

from convnext_deploy.api.options import DataOptions, TrainingOptions, given
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import ModelConfig
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
    found = FitConfig() if source is None else FINE_TUNE_FIT
    # smoothing would teach that even the rarest label is likelier than it is
    return dataclasses.replace(found, label_smoothing=0.0) if data.multi_label else found


def override_fit(fit: FitConfig, options: TrainingOptions) -> FitConfig:
    """Put what the user asked for in the place of the preset."""
    known = {field.name for field in dataclasses.fields(fit)}
    return dataclasses.replace(fit, **{name: getattr(options, name) for name in given(options) if name in known})


def model_config(
    name: str,
    data: DataOptions,
    training: TrainingOptions,
    images: Data,
    start: Artifact | None,
    weights: Path | str | None = None,
) -> ModelConfig:
    """Return the network to train: that of the weights to start from when there are any, otherwise as asked for.

    Args:
        name: variant.
        data: what it says of the preprocessing; size and crop of given weights are those of `start`.
        training: `patch_size` and `head_hidden_size` count.
        images: they decide the image size when nobody else does.
        start: the opened weights, at the image size asked for.
        weights: where they lie, if the stage itself is to load them.
    """
    resolve_variant(name)
    asked = data.preprocess
    if start is not None:
        model = ModelConfig(
            name,
            start.preprocess.image_size,
            training.patch_size or start.model.patch_size,
            start.model.in_channels,
            start.preprocess.crop_pct,
            training.head_hidden_size,
            weights=None if weights is None else str(weights),
        )
    else:
        model = ModelConfig(
            name,
            data.image_size or (32 if images.name == BUILT_IN else ModelConfig.image_size),
            training.patch_size or ModelConfig.patch_size,
            crop_pct=data.crop_pct,
            head_hidden_size=training.head_hidden_size,
        )
    return dataclasses.replace(
        model, crop_mode=asked.crop_mode, interpolation=asked.interpolation, mean=asked.mean, std=asked.std
    )
