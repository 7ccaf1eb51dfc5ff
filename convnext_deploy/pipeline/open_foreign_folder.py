"""Open folders of timm and transformers: weights beside a config that names the network and how images are made ready for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import Details, ForeignDetails, Library
from convnext_deploy.artifacts.preprocessing import assume, tell
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, default_preprocess
from convnext_deploy.config.records import read_record, shown
from convnext_deploy.data.class_names import parse_names
from convnext_deploy.errors import CheckpointError, RecipeError, first_line
from convnext_deploy.pipeline.open_checkpoint import WEIGHT_FILES, evaluation_note
from convnext_deploy.pipeline.told_classes import find_class_names

_CONFIG = "config.json"
_MOST = 10**6  # classes or channels
_OWN = ("convnext", "dinov3_convnext")  # what networks that are read here are called in a config, to begin with
_TIMM_FIELDS = ("interpolation", "crop_pct", "crop_mode", "mean", "std")


def open_foreign_folder(folder: Path) -> Artifact | None:
    """Return what lies in a folder; None: no weights beside a config, or a ConvNeXt. Raises: CheckpointError: if it is damaged."""
    from convnext_deploy.models.checkpoints.image_processor import read_config_file

    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None or not (folder / _CONFIG).is_file():
        return None
    config = read_config_file(folder / _CONFIG)
    kind = str(config.get("architecture") or config.get("model_type") or "")
    if not kind or kind.startswith(_OWN):
        return None
    library: Library = "timm" if "architecture" in config else "transformers"
    try:
        return (_of_timm if library == "timm" else _of_transformers)(weights, config)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecipeError) as error:
        raise CheckpointError(
            f"{folder / _CONFIG} is damaged ({type(error).__name__}: {first_line(error):.200})."
        ) from None


def _of_timm(weights: Path, config: Mapping[str, Any]) -> Artifact:
    """Describe a folder of timm's, as its `save_for_hf` writes it and the hub has it."""
    from convnext_deploy.training.foreign_libraries import check_timm

    architecture = str(config["architecture"])
    check_timm(architecture)
    settings = config.get("pretrained_cfg", config)
    arguments = dict(config.get("model_args") or {})
    classes = arguments.pop("num_classes", config.get("num_classes", settings.get("num_classes", 1000)))
    classes = _count(classes, 0, "num_classes")
    if pool := config.get("global_pool"):
        arguments.setdefault("global_pool", pool)
    channels, *sides = map(index, settings.get("input_size", (3, 224, 224)))
    channels = _count(channels, 1, "input channels")
    asked = arguments.get("img_size", sides)
    side, *others = [asked] if isinstance(asked, int) else asked
    if any(other != side for other in others) or not isinstance(side, int):
        raise CheckpointError(
            f"{weights.parent / _CONFIG} asks for images of {shown(asked)} pixels; expected square ones."
        )
    preprocess = told_preprocess(
        {"image_size": side, **timm_transform(settings)}, channels, f"from {_CONFIG} beside it"
    )
    names = settings.get("label_names") or config.get("label_names") or settings.get("labels")
    return describe_foreign(
        weights, ForeignDetails("timm", architecture, arguments), classes, channels, preprocess, _names(names, classes)
    )


def _count(value: Any, least: int, what: str) -> int:
    """Return a number of classes or channels. Raises: TypeError, ValueError: if none has so many."""
    if not least <= index(value) <= _MOST:
        raise ValueError(f"{what} {value}; expected {least} to {_MOST}")
    return int(value)


def timm_transform(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Preprocess` that timm's settings tell."""
    found = {name: settings[name] for name in _TIMM_FIELDS if settings.get(name) is not None}
    if found.get("interpolation") == "random":  # of training: each image gets one of two
        found["interpolation"] = "bicubic"
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _of_transformers(weights: Path, config: Mapping[str, Any]) -> Artifact:
    from convnext_deploy.models.checkpoints.hub_config import MULTI_LABEL
    from convnext_deploy.models.checkpoints.image_processor import interpret_processor, read_processor

    architecture = str((config.get("architectures") or [config["model_type"]])[0])
    labels = config.get("id2label") or {}
    is_classifier = architecture.endswith("ForImageClassification")
    classes = (len(labels) or _count(config.get("num_labels", 2), 1, "num_labels")) if is_classifier else 0
    channels = _count(config.get("num_channels", 3), 1, "num_channels")
    processor, processor_path = read_processor(weights.parent)
    side = config.get("image_size")
    values: dict[str, Any] = {"image_size": side} if type(side) is int else {}
    if processor:
        values = dict(interpret_processor(processor, channels, processor_path).values)
    preprocess = told_preprocess(values, channels, f"from {processor_path.name if processor else _CONFIG} beside it")
    names = _names(labels or None, classes)
    if names == tuple(f"LABEL_{number}" for number in range(classes)):
        names = None
    details = ForeignDetails("transformers", architecture)
    found = describe_foreign(weights, details, classes, channels, preprocess, names)
    multi_label = is_classifier and config.get("problem_type") == MULTI_LABEL
    return dataclasses.replace(found, model=dataclasses.replace(found.model, multi_label=multi_label))


def describe_foreign(
    weights: Path, details: Details, classes: int, channels: int, preprocess: Preprocess, names: tuple[str, ...] | None
) -> Artifact:
    """Return a network of another library, with what is known of it."""
    spec = ModelSpec("unknown", classes, channels)
    remarks: list[str] = []
    if names is None and classes:
        names, remarks = find_class_names(weights, spec, {}, alone=weights.name in WEIGHT_FILES)
    notes = (
        f"{weights.name}: {details} with {classes or 'no'} classes",
        *remarks,
        evaluation_note(weights, preprocess),
    )
    return Artifact(weights.parent, details, "fp32", spec, names, preprocess, (describe_file(weights),), notes=notes)


def told_preprocess(values: Mapping[str, Any], channels: int, origin: str) -> Preprocess:
    """Return a preprocessing with what a file tells; the rest is usual, and assumed."""
    usual = default_preprocess(int(values.get("image_size", 224)), None, channels)
    checked = read_record(Preprocess, {**usual.settings(), **values}, "preprocessing")
    found = tell(assume(usual, "usual, because no file tells it"), values, origin)
    return dataclasses.replace(checked, origins=found.origins)


def _names(told: Any, classes: int) -> tuple[str, ...] | None:
    try:
        names = tuple(parse_names(told))
    except (ValueError, TypeError):
        return None
    return names if len(names) == classes else None
