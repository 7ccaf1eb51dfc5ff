"""Write a starter recipe: fine-tune, quantize and export a recommended variant, with the source of every value beside it."""

import dataclasses
import json
from collections.abc import Iterator

from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.fit import Augmentation, FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.config.recipe import Gate, Recipe, StageEntry
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.models.variants import short_name
from convnext_deploy.models.zoo.published import PUBLISHED
from convnext_deploy.models.zoo.ranking import Candidate
from convnext_deploy.models.zoo.training_settings import (
    EMA_DECAY,
    FEW_IMAGES,
    RATE_BATCH_SIZE,
    WEIGHT_DECAY,
    DataSize,
    SettingRanges,
    TrainingSettings,
    augmentation_for,
    data_size,
    fine_tuning,
    format_setting,
    settings_for_size,
)

_BASE_BATCH_SIZE = 4096  # at which recipes give learning rates
_TOOL = "this tool's default"
_COMMENT_COLUMN = 36

Comments = dict[str, str]


def recommended_fit(
    variant: str, settings: TrainingSettings, augmentation: Augmentation, *, from_weights: bool
) -> FitConfig:
    """Return how to train a variant, with the batch size that belongs to its learning rate.

    Args:
        variant: full name, no test network.
        settings: of its size and its data.
        augmentation: that of the data; without Mixup and CutMix where `settings` has none.
        from_weights: whether it starts from published weights or from fresh ones.
    """
    start = fine_tuning(variant)
    assert start is not None  # only the test networks lack it
    return FitConfig(
        **dataclasses.asdict(augmentation_for(augmentation, mixup=settings.mixup)),
        epochs=settings.epochs,
        batch_size=RATE_BATCH_SIZE,
        base_learning_rate=round(settings.learning_rate * _BASE_BATCH_SIZE / RATE_BATCH_SIZE, 10),
        warmup_epochs=settings.warmup_epochs,
        weight_decay=WEIGHT_DECAY,
        label_smoothing=settings.label_smoothing,
        drop_path_rate=settings.drop_path_rate,
        layer_decay=start.layer_decay if from_weights else 1.0,
        ema_decay=start.ema_decay if from_weights else EMA_DECAY,
    )


def create_start_recipe(candidate: Candidate, image_size: int, images: int, *, engines: bool = True) -> Recipe:
    """Return train → quantize → ONNX (FP32, INT8) → TensorRT-RTX for a candidate; the data are for `--data`.

    Training with quantization gets half the batch: it keeps up to 1.8 times as much for each image, and a float copy of the
    network as its teacher.

    Args:
        candidate: from `rank`.
        image_size: side of the network's input in pixels.
        images: training images, which decide the augmentation.
        engines: whether TensorRT-RTX engines come last.
    """
    published = PUBLISHED[candidate.variant]
    model = ModelConfig(
        candidate.variant, image_size=image_size, weights=None if published is None else f"timm/{published.weights}"
    )
    fit = dataclasses.replace(
        recommended_fit(
            candidate.variant, candidate.settings, data_size(images).augmentation, from_weights=published is not None
        ),
        batch_size=candidate.batch_size,
        gradient_checkpointing=candidate.gradient_checkpointing,
    )
    qat_fit = dataclasses.replace(
        QATConfig().fit,
        batch_size=max(1, candidate.batch_size // 2),
        crop_scale_min=fit.crop_scale_min,
        gradient_checkpointing=candidate.gradient_checkpointing,
    )
    stages = (
        StageEntry("model", TrainConfig(model, fit), None),
        StageEntry("quantize", QuantizeConfig(fit=qat_fit), "model", Gate(max_top1_drop_pp=0.5)),
        StageEntry("onnx-fp32", ONNXConfig(), "model", Gate(max_top1_drop_pp=0.05)),
        StageEntry(
            "onnx-int8", ONNXConfig(precision="fp16", runtime="tensorrt-rtx"), "quantize", Gate(max_top1_drop_pp=0.5)
        ),
        StageEntry("engine-int8", TensorRTConfig(), "onnx-int8", Gate(max_top1_drop_pp=0.5)),
    )
    return Recipe(f"start-{short_name(candidate.variant)}", stages if engines else stages[:-1])


def write_recipe_text(
    recipe: Recipe, candidate: Candidate, images: int, classes: int, size_source: str = "--image-size"
) -> str:
    """Return the TOML text of a recipe that `create_start_recipe` made, with a comment beside every value.

    Args:
        recipe: what to write.
        candidate: of which it was made.
        images: training images.
        classes: that they belong to.
        size_source: where the image size is from.
    """
    comments = _comments(candidate, images, size_source)
    lines = [
        f"# A start for {images:,} images of {classes} classes: {candidate.variant}, fine-tuned, quantized to INT8, exported.",
        "# Run it with: convnext-deploy run THIS_FILE --data DIR",
        "# 'ours': a choice of this project; ranges are in convnext_deploy/models/zoo/training_settings.py, and their middle is",
        "# taken. Learning rates are for batch 4096 and scaled linearly to the batch size.",
        *_values(recipe, {"name": "also the folder of the results: runs/NAME", "seed": _TOOL}),
    ]
    for stage in recipe.stages:
        lines += ["", "[[stages]]", f'kind = "{stage.config.kind}"', f'name = "{stage.name}"']
        if stage.source is not None:
            lines.append(f'source = "{stage.source}"')
        lines += _stage_lines(stage, comments)
    return "\n".join(lines) + "\n"


def _stage_lines(stage: StageEntry, comments: dict[str, Comments]) -> Iterator[str]:
    if stage.gate != Gate():
        gate = f"gate = {{ max_top1_drop_pp = {_toml(stage.gate.max_top1_drop_pp)} }}"
        yield _commented(gate, comments["gate"][stage.name])
    config: StageConfig = stage.config
    yield from _values(config, comments.get(stage.name, {}))
    for table in ("model", "fit"):
        if (record := getattr(config, table, None)) is not None:
            yield f"[stages.{table}]"
            yield from _values(record, comments[f"{stage.name}.{table}"])


def _values(record: object, comments: Comments) -> Iterator[str]:
    """Yield a line for each commented field; the fields without a comment have their default."""
    for name, comment in comments.items():
        if (value := getattr(record, name)) is not None:
            yield _commented(f"{name} = {_toml(value)}", comment)


def _commented(text: str, comment: str) -> str:
    return f"{text.ljust(_COMMENT_COLUMN)}  # {comment}"


def _toml(value: object) -> str:
    """Write a string, number, truth value or tuple of these as TOML reads it, which for them is JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _comments(candidate: Candidate, images: int, size_source: str) -> dict[str, Comments]:
    """The source of each value, by stage and field."""
    data, size = data_size(images), settings_for_size(candidate.variant)
    assert size is not None  # candidates are never test networks
    published = PUBLISHED[candidate.variant]
    weights = "" if published is None else f"{published.top1} % on ImageNet-1k, the head is new"
    if published is not None and published.non_commercial:
        weights += "; CC BY-NC 4.0: not for commercial use"
    of_data = f"ours for {data.name} data"
    few = f"ours for fewer than {FEW_IMAGES:,} images" if images < FEW_IMAGES else ""
    mixup = of_data if size.mixup else "ours for this size"
    start = fine_tuning(candidate.variant)
    assert start is not None  # nor are they here
    from_scratch = "arXiv 2201.03545, table 5, from scratch"
    memory = f"an estimated {candidate.memory_gib:.1f} GB on a GPU with bfloat16"
    rate = f"{format_setting(candidate.settings.learning_rate)} at batch {RATE_BATCH_SIZE} x {_BASE_BATCH_SIZE // RATE_BATCH_SIZE}"
    return {
        "model.model": {"name": candidate.reasons[0], "image_size": size_source, "weights": weights},
        "model.fit": {
            "epochs": few or f"{of_data}: {data.settings.epochs}",
            "batch_size": memory,
            "base_learning_rate": f"{rate}; {_both('learning_rate', size, data)}",
            "warmup_epochs": few or f"{of_data}: {data.settings.warmup_epochs}",
            "weight_decay": "ours for all sizes: AdamW with betas 0.9 and 0.999",
            "label_smoothing": of_data,
            "drop_path_rate": _both("drop_path_rate", size, data),
            "layer_decay": from_scratch if published is None else f"{start.source}: {start.note}",
            "ema_decay": from_scratch if published is None else start.source,
            **_augmentation_comments(data.augmentation),
            "mixup_alpha": mixup,
            "cutmix_alpha": mixup,
            "gradient_checkpointing": "only where the memory of the GPU asks for it",
        },
        "quantize": {
            "target": f"{_TOOL}: INT8; for RTX 40 and newer alone also 'tensorrt-fp8'",
            "method": f"{_TOOL}: the cheapest that is good enough, training last",
            "max_drop_pp": f"{_TOOL}: percentage points of top-1, on training images set aside",
            "calibration_images": _TOOL,
        },
        "quantize.fit": {
            "epochs": _TOOL,
            "batch_size": "half of the above: fake quantization keeps more, and the float network is the teacher",
            "base_learning_rate": "fine-tuning in arXiv 2201.03545, table 6: 5e-5 at batch 512",
            "warmup_epochs": _TOOL,
            "drop_path_rate": "none: the student follows the same network in float",
            "crop_scale_min": "as above",
            "gradient_checkpointing": "as above",
        },
        "onnx-int8": {
            "precision": "of all that is not INT8, or the engine computes it in FP32",
            "runtime": "that of the engines below",
        },
        "engine-int8": {
            "flavor": "builds without a GPU",
            "gpus": "GeForce RTX 30 and RTX 40; choose yours",
            "optimal_batch_size": _TOOL,
            "max_batch_size": _TOOL,
        },
        "gate": {
            "quantize": "percentage points of top-1 against 'model', on the validation images",
            "onnx-fp32": "the same arithmetic: only ties may fall differently",
            "onnx-int8": "against 'model'",
            "engine-int8": "against 'model', where there is such a GPU to run it",
        },
    }


def _augmentation_comments(augmentation: Augmentation) -> Comments:
    if augmentation.augmentation_policy == "none":
        return {
            "crop_scale_min": "ours: half of the image and more, so that what decides stays in it",
            "flip_probability": "0.0 where left and right are not the same thing",
            "color_jitter": "ours: light",
        }
    return {
        "crop_scale_min": "torchvision's for ImageNet",
        "flip_probability": "torchvision's for ImageNet; 0.0 where left and right are not the same thing",
        "augmentation_policy": "arXiv 2201.03545, table 5",
        "randaugment_ops": "table 5 in timm's words: two operations, each left out in every second case",
        "randaugment_magnitude": "table 5: 9 on timm's scale to 10, which is 27 on this one to 30",
        "random_erasing_probability": "table 5",
    }


def _both(setting: str, size: SettingRanges, data: DataSize) -> str:
    return f"ours for this size: {getattr(size, setting)}; {data.name} data: {getattr(data.settings, setting)}"
