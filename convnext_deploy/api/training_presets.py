"""The training settings of a verb: chosen for the data, put in place by what the user asked for, and said in plain words."""

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convnext_deploy.api.options import DataOptions, TrainingOptions, given
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import REFERENCE_BATCH_SIZE, FitConfig
from convnext_deploy.config.image_size import show_size
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.datasets import BUILT_IN, Data
from convnext_deploy.data.survey import survey
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.models.zoo.cost import count_parameters
from convnext_deploy.models.zoo.presets import (
    SMALL_DATA,
    preset_fit,
    preset_qat,
    preset_recovery,
    preset_size,
    preset_stem,
    with_batch,
)
from convnext_deploy.models.zoo.published import PUBLISHED
from convnext_deploy.models.zoo.training_settings import FEW_IMAGES, format_setting

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
# From tiny on each image costs so much, and teaches so much, that fewer epochs of smaller steps do: too few for crops, which only
# make each image harder. LayerScale begins at 1, where all blocks count at once. Without crops the teacher is asked once for all.
_DIGITS_LARGE_FIT = dataclasses.replace(
    DIGITS_FIT,
    epochs=8,
    batch_size=32,
    base_learning_rate=0.0906,
    warmup_epochs=0.5,
    crop_scale_min=1.0,
    layer_scale_init=1.0,
)
_DIGITS_LARGE_TEACHER_FIT = dataclasses.replace(_DIGITS_LARGE_FIT, epochs=3, base_learning_rate=0.056)
_LEAST_LARGE = 20_000_000  # parameters
# 2.5e-5, as in recipes/quickstart.toml: at 1e-4 networks drift from what they have learned
DIGITS_QAT_FIT = dataclasses.replace(
    DIGITS_FIT, epochs=5, base_learning_rate=0.0016, warmup_epochs=0.5, label_smoothing=0.0
)
# on the digits students become better than their teachers, and labels have more to say
_DIGITS_LOSS_WEIGHT = 0.5

Role = Literal["model", "teacher", "student", "pruned"]


@dataclass(frozen=True)
class Chosen:
    """How a stage trains, and why in words: a line for the network and one for the settings."""

    model: ModelConfig
    fit: FitConfig
    words: tuple[str, ...]


def choose(
    name: str,
    data: DataOptions,
    training: TrainingOptions,
    images: Data,
    start: Artifact | None,
    role: Role,
    weights: Path | str | None = None,
) -> Chosen:
    """Choose how to train a variant where the user did not say it; the same images give the same choice.

    Args:
        name: variant.
        data: what it says of the preprocessing; size and crop of given weights are those of `start`.
        training: what replaces the choice.
        images: their number and size decide when nobody else does.
        start: the opened weights, at the image size asked for.
        role: what it is trained for.
        weights: where the weights lie, if the stage itself is to load them.
    """
    resolve_variant(name)
    count = len(images.train)
    if images.name == BUILT_IN:
        fit = _digits_fit(name, role)
    elif role == "pruned":
        fit = preset_recovery(name, count)
    else:
        fit = preset_fit(name, count, from_weights=start is not None)
    if images.multi_label:
        # smoothing would teach that even the rarest label is likelier than it is
        fit = dataclasses.replace(fit, label_smoothing=0.0)
    fit = override_fit(fit, training)
    model = _model(name, data, training, images, start, weights)
    return Chosen(model, fit, tuple(_words(name, model, fit, (data, training), images, start, role)))


def _digits_fit(name: str, role: Role) -> FitConfig:
    if count_parameters(ModelSpec(resolve_variant(name), 10)) < _LEAST_LARGE:
        return DIGITS_TEACHER_FIT if role == "teacher" else DIGITS_FIT
    if role == "teacher":
        return _DIGITS_LARGE_TEACHER_FIT
    own_epochs = 0 if role == "model" else 1
    return dataclasses.replace(_DIGITS_LARGE_FIT, augmentation_epochs=own_epochs)


def choose_loss_weight(images: Data) -> tuple[float, tuple[str, ...]]:
    """Return what the teacher's loss weighs where nobody says it, and in words why it is not what is usual."""
    if images.name != BUILT_IN:
        return DistillConfig.distill_loss_weight, ()
    return _DIGITS_LOSS_WEIGHT, (f"weight {_DIGITS_LOSS_WEIGHT:g} for the teacher's loss: measured on the digits",)


def choose_qat(training: TrainingOptions, images: Data) -> FitConfig:
    """Choose how to train with quantizers in place."""
    usual = DIGITS_QAT_FIT if images.name == BUILT_IN else preset_qat(QATConfig().fit, len(images.train))
    return override_fit(usual, training)


def describe_qat(fit: FitConfig, training: TrainingOptions, images: Data) -> tuple[str, ...]:
    """Say how a network is trained with quantizers in place, where that is needed."""
    steps = _describe_steps(fit, len(images.train))
    reason = "measured on the digits" if images.name == BUILT_IN else "fine-tuning, some hundred steps at least"
    return (f"trains only if nothing cheaper is good enough; {steps}: {reason}", *_asked([training]))


def override_fit(fit: FitConfig, options: TrainingOptions) -> FitConfig:
    """Put what the user asked for in the place of what was chosen; learning rate and warm-up follow another batch or length."""
    known = {field.name for field in dataclasses.fields(fit)}
    asked = {name: getattr(options, name) for name in given(options) if name in known}
    found = dataclasses.replace(fit, **asked)
    if "batch_size" in asked and "base_learning_rate" not in asked:
        found = with_batch(found, peak_rate(fit), fit.batch_size)
    if "epochs" in asked:
        found = dataclasses.replace(found, warmup_epochs=round(fit.warmup_epochs * found.epochs / fit.epochs, 3))
    return found


def peak_rate(fit: FitConfig) -> float:
    """Return the highest learning rate of a training."""
    return fit.linear_learning_rate * fit.batch_size / REFERENCE_BATCH_SIZE


def better_teacher(name: str, images: Data) -> str:
    """Say what is done where no weights of a teacher were given, and what would teach more."""
    text = f"no teacher checkpoint was given: training the teacher '{name}' first"
    published = PUBLISHED[resolve_variant(name)]
    if images.name == BUILT_IN or published is None or len(images.train) >= SMALL_DATA:
        return text
    return (
        f"{text}, from scratch, on these {len(images.train):,} images alone; one that begins with published weights knows more: "
        f"convnext-deploy train --weights timm/{published.weights} --data {shlex.quote(images.name)} --out runs/teacher, and then "
        "--teacher-checkpoint runs/teacher/stages/model"
    )


def _words(
    name: str,
    model: ModelConfig,
    fit: FitConfig,
    options: Sequence[DataOptions | TrainingOptions],
    images: Data,
    start: Artifact | None,
    role: Role,
) -> Iterator[str]:
    """Yield what is trained and how, with what was chosen for which reason and what was asked for."""
    count = len(images.train)
    origin = "from scratch" if start is None else f"from {start.place}"
    yield (
        f"{name} {origin}, {count:,} images of {len(images.class_names)} classes at {show_size(model.image_size)} pixels, stem "
        f"{model.patch_size}"
    )
    taught = images.unlabelled if role in ("student", "pruned") else None
    steps = _describe_steps(fit, count if taught is None else count + len(taught.images))
    yield f"{steps}: {_reason(images, start, role)}"
    yield from _asked(options)


def _describe_steps(fit: FitConfig, count: int) -> str:
    batch = min(fit.batch_size, count)
    peak = format_setting(float(f"{peak_rate(fit):.2g}"))
    return f"{fit.epochs} epochs of {count // max(1, batch)} steps, batch {batch}, learning rate up to {peak}"


def _asked(options: Sequence[DataOptions | TrainingOptions]) -> Iterator[str]:
    asked = [f"{field} {getattr(record, field)}" for record in options for field in given(record) if field in _SAID]
    if asked:
        yield f"as asked for: {', '.join(asked).replace('_', ' ')}"


_SAID = {field.name for field in dataclasses.fields(TrainingOptions)} | {"image_size"}


def _reason(images: Data, start: Artifact | None, role: Role) -> str:
    if images.name == BUILT_IN:
        return "measured on the digits"
    if role == "pruned":
        return "a pruned network has little to learn again, from a network that knows it"
    count = len(images.train)
    if start is not None:
        return "fine-tuning, as in our recipes for so many images"
    if count >= SMALL_DATA:
        return "as in our recipes for so many images"
    few = f"fewer than {FEW_IMAGES if count < FEW_IMAGES else SMALL_DATA:,} images"
    return f"{few} from scratch learn more from many short steps at high rates than from large pictures"


def _model(
    name: str,
    data: DataOptions,
    training: TrainingOptions,
    images: Data,
    start: Artifact | None,
    weights: Path | str | None = None,
) -> ModelConfig:
    """Return the network to train: that of the weights to start from when there are any, otherwise as asked for or chosen."""
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
        size, stem = data.image_size, training.patch_size or ModelConfig.patch_size
        if size is None and images.name == BUILT_IN:
            size = 32
        elif size is None:
            size = preset_size(len(images.train), survey(images).median_side)
            stem = training.patch_size or preset_stem(size)
            size = max(size, 8 * stem)
        model = ModelConfig(name, size, stem, crop_pct=data.crop_pct, head_hidden_size=training.head_hidden_size)
    return dataclasses.replace(
        model, crop_mode=asked.crop_mode, interpolation=asked.interpolation, mean=asked.mean, std=asked.std
    )
