"""Read and write the config files that timm and transformers keep beside weights: preprocessing and class names.

timm: `config.json` as its own `save_for_hf` writes it. transformers: `config.json` and `preprocessor_config.json`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from convnext_deploy.config.image_size import ImageSize, plain_size, possible_size
from convnext_deploy.config.records import name_shown, read_record, shown
from convnext_deploy.documents import is_plain_line
from convnext_deploy.errors import CheckpointError, first_line
from convnext_deploy.models.checkpoints.image_processor import (
    PROCESSOR_FILES,
    interpret_processor,
    read_config_file,
    read_processor,
)
from convnext_deploy.models.checkpoints.told_settings import adapt_channels
from convnext_deploy.models.variants import (
    TIMM_OUTPUT_STRIDE,
    TIMM_OUTPUT_STRIDES,
    VARIANTS,
    complete_spec,
    timm_output_stride,
)

CONFIG, PREPROCESSOR = "config.json", PROCESSOR_FILES[0]

_TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu"}
_TIMM_NORM_VARIANTS = ("", "2d", "fp32", "2dfp32")  # of one norm, such as `layernorm2d`: they compute the same
_TRANSFORMERS_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
# timm's arguments that change nothing in a trained network, or that the shapes of its weights tell
_TIMM_TOLD_BY_SHAPES = {
    "in_chans", "patch_size", "num_classes", "head_hidden_size", "depths", "dims", "kernel_sizes", "use_grn", "conv_mlp",
    "head_norm_first", "stem_type", "norm_layer", "ls_init_value", "drop_rate", "drop_path_rate", "head_init_scale", "img_size",
}  # fmt: skip
_DINOV3 = "dinov3_convnext"
MULTI_LABEL = (
    "multi_label_classification"  # transformers' `problem_type` of a network trained with a sigmoid for each output
)
TRANSFORMERS_DEFAULT_EPS = 1e-12  # of the last norm; the other norms have 1e-6, which no config changes


@dataclass(frozen=True)
class HubConfig:
    """What a config file says: `changes` to the fields of a `ModelSpec`, `license` of the weights; None where it says nothing.

    `told`: of the preprocessing, where the file does not say all of it. `remarks`: what of the files was not taken, and why.
    `output_stride` of timm's network.
    """

    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    told: Mapping[str, Any] = field(default_factory=dict, compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)
    output_stride: int = TIMM_OUTPUT_STRIDE


def read_hub_config(folder: Path, spec: ModelSpec) -> HubConfig | None:
    """Read the config files in a folder of weights; None if there are none, or another tool's.

    Raises: CheckpointError: if they are damaged, or ask for a network that there is not.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    config = read_config_file(path)
    try:
        if "architecture" in config or "pretrained_cfg" in config:
            return _read_timm(config, spec, path)
        if str(config.get("model_type", "")) in ("convnext", "convnextv2", _DINOV3):
            return _read_transformers(config, *read_processor(folder), spec, path)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} or {PREPROCESSOR} is damaged ({type(error).__name__}: {first_line(error):.200})."
        ) from None
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of the network in a folder. Raises: CheckpointError: if it cannot be read."""
    return read_config_file(folder / CONFIG)


def _read_timm(config: Mapping[str, Any], spec: ModelSpec, path: Path) -> HubConfig:
    settings = config.get("pretrained_cfg", config)
    row = complete_spec(spec)
    arguments = dict(config.get("model_args") or {})
    changes: dict[str, Any] = {}
    if "act_layer" in arguments:
        changes["activation"] = _look_up(_TIMM_ACTIVATIONS, arguments.pop("act_layer"), "act_layer", path)
    if "norm_eps" in arguments:
        changes["norm_eps"] = _positive(arguments.pop("norm_eps"))
    output_stride = arguments.pop("output_stride", TIMM_OUTPUT_STRIDE)
    if output_stride not in TIMM_OUTPUT_STRIDES:
        raise CheckpointError(f"{path} sets output_stride {shown(output_stride)}; timm knows {TIMM_OUTPUT_STRIDES}.")
    norms = [row.norm + variant for variant in _TIMM_NORM_VARIANTS]
    if "norm_layer" in arguments and arguments["norm_layer"] not in norms:
        # norms with equal weights compute different things
        raise CheckpointError(
            f"{path} sets norm_layer {shown(arguments['norm_layer'])}; {spec.variant} has a {row.norm} here."
        )
    pool = arguments.pop("global_pool", config.get("global_pool", "avg"))
    unknown = sorted(set(arguments) - _TIMM_TOLD_BY_SHAPES)
    if unknown or pool != "avg":
        what = f"model_args.{name_shown(unknown[0])}" if unknown else f"global_pool {shown(pool)}"
        raise CheckpointError(f"{path} sets {what}, which this tool's ConvNeXt does not have.")
    _, height, width = [*map(index, settings.get("input_size", (3, 224, 224)))]
    mode, crop_pct = settings.get("crop_mode", "center"), settings.get("crop_pct")
    if mode not in ("center", "squash"):
        raise CheckpointError(f"{path} has crop_mode {shown(mode)}; known are 'center' and 'squash'.")
    interpolation = settings.get("interpolation") or "bicubic"
    if interpolation == "random":  # of training: each image gets one of two
        interpolation = "bicubic"
    places = (config.get("label_names"), settings.get("label_names"), settings.get("labels"))
    names = next((found for found in places if found), None)
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    known, remarks = _class_names(names, spec, path)
    return HubConfig(
        _preprocess(
            spec, plain_size((height, width)), 0.875 if crop_pct is None else crop_pct, interpolation,
            adapt_channels(settings.get("mean") or IMAGENET_MEAN, spec.in_channels),
            adapt_channels(settings.get("std") or IMAGENET_STD, spec.in_channels), mode,
        ),
        known,
        changes,
        None if settings.get("license") is None else str(settings["license"]),
        remarks=remarks,
        output_stride=output_stride,
    )  # fmt: skip


def _read_transformers(
    config: Mapping[str, Any], processor: Mapping[str, Any], processor_path: Path, spec: ModelSpec, path: Path
) -> HubConfig:
    activation = _look_up(_TRANSFORMERS_ACTIVATIONS, config.get("hidden_act", "gelu"), "hidden_act", path)
    eps, usual = "head_norm_eps", TRANSFORMERS_DEFAULT_EPS
    if config.get("model_type") == _DINOV3:
        eps, usual = "norm_eps", complete_spec(spec).norm_eps
    changes: dict[str, Any] = {eps: _positive(config.get("layer_norm_eps", usual))}
    if activation != complete_spec(spec).activation:
        changes["activation"] = activation
    names, remarks = _class_names(_labels(config), spec, path)
    if spec.num_classes and config.get("problem_type") == MULTI_LABEL:
        changes["multi_label"] = True
        remarks += (f"each output is a label of its own, as of a sigmoid: {path.name} says '{MULTI_LABEL}'",)
    if not processor:
        side = config.get("image_size")
        told = {"image_size": possible_size(side)} if type(side) is int else {}
        return HubConfig(None, names, changes, told=told, remarks=remarks)
    found = interpret_processor(processor, spec.in_channels, processor_path)
    remarks += found.remarks
    if "mean" not in found.values:
        filled = {"mean": (0.5,), "std": (0.5,), **found.values}
        checked = read_record(Preprocess, filled, "preprocessing")
        return HubConfig(
            None, names, changes, told={name: getattr(checked, name) for name in found.values}, remarks=remarks
        )
    return HubConfig(read_record(Preprocess, found.values, "preprocessing"), names, changes, remarks=remarks)


def _labels(config: Mapping[str, Any]) -> list[Any]:
    """Return the names of the classes of a config of transformers, in order; none where it has only its own numbers for them."""
    labels = config.get("id2label") or {number: name for name, number in (config.get("label2id") or {}).items()}
    names = [labels[key] for key in sorted(labels, key=int)]
    return [] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _positive(value: Any) -> float:
    found = float(value)
    if not 0 < found < math.inf:
        raise ValueError(f"{found} for the eps of a norm")
    return found


def _look_up(known: Mapping[str, str], found: object, name: str, path: Path) -> str:
    if not isinstance(found, str) or found not in known:
        raise CheckpointError(f"{path} has {name} {shown(found)}; known are {', '.join(known)}.")
    return known[found]


def _preprocess(
    spec: ModelSpec, size: ImageSize, crop_pct: float, interpolation: str, mean: Any, std: Any, mode: Any
) -> Preprocess | None:
    """Return the transform, or None where mean and std do not belong to the network's input."""
    if not mean or not std or not len(mean) == len(std) == spec.in_channels:
        return None
    found = {"image_size": size, "crop_pct": crop_pct, "interpolation": interpolation, "mean": mean, "std": std}
    return read_record(Preprocess, {**found, "crop_mode": mode}, "preprocessing")


def _class_names(names: Any, spec: ModelSpec, path: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return names that are as many as the classes; otherwise None, and what is wrong."""
    if not names:
        return None, ()
    texts = tuple(map(str, names))
    if (wrong := next((text for text in texts if not is_plain_line(text)), None)) is not None:
        return None, (f"{path.name} has {shown(wrong)} for the name of a class: its names are not taken",)
    if len(texts) == spec.num_classes:
        return texts, ()
    return None, (
        f"{path.name} names {len(names):,} classes, and the network has {spec.num_classes:,}: they are not taken",
    )


def timm_config(spec: ModelSpec, preprocess: Preprocess, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """Return what timm's `create_model('local-dir:DIR', pretrained=True)` needs to build the same network."""
    table, row = VARIANTS[spec.variant], complete_spec(spec)
    arguments = {
        "in_chans": (spec.in_channels, 3),
        "patch_size": (spec.patch_size, 4),
        "output_stride": (timm_output_stride(spec), TIMM_OUTPUT_STRIDE),
        "head_hidden_size": (row.head_hidden_size or 0, table.head_hidden_size or 0),
        "norm_eps": (row.norm_eps, table.norm_eps),
        "act_layer": (row.activation, table.activation),
    }
    height, width = preprocess.sides
    return {
        "architecture": spec.variant,
        "num_classes": spec.num_classes,
        "num_features": row.dims[-1],
        "global_pool": "avg",
        **({"label_names": list(class_names)} if class_names else {}),
        "model_args": {name: value for name, (value, usual) in arguments.items() if value != usual},
        "pretrained_cfg": {
            "num_classes": spec.num_classes,
            "input_size": [spec.in_channels, height, width],
            "fixed_input_size": False,
            "pool_size": [height // 32, width // 32],
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
            "crop_mode": preprocess.crop_mode,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "first_conv": "stem.0",
            "classifier": "head.fc",
        },
    }


def transformers_config(spec: ModelSpec, preprocess: Preprocess, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """Return the `config.json` of a `ConvNextForImageClassification` or `ConvNextV2ForImageClassification`, or `…Model`."""
    row = complete_spec(spec)
    name = ("ConvNext" if row.version == 1 else "ConvNextV2") + (
        "ForImageClassification" if spec.num_classes else "Model"
    )
    names = class_names or tuple(f"LABEL_{i}" for i in range(spec.num_classes))
    activation = next(theirs for theirs, ours in _TRANSFORMERS_ACTIVATIONS.items() if ours == row.activation)
    return {
        "architectures": [name],
        "model_type": "convnext" if row.version == 1 else "convnextv2",
        "num_channels": spec.in_channels,
        "patch_size": spec.patch_size,
        "num_stages": len(row.depths),
        "depths": list(row.depths),
        "hidden_sizes": list(row.dims),
        "hidden_act": activation,
        "layer_norm_eps": row.norm_eps if spec.head_norm_eps is None else spec.head_norm_eps,
        "image_size": preprocess.image_size,
        **(_numbered(names) if names else {}),
        **({"problem_type": MULTI_LABEL} if spec.multi_label else {}),
        "dtype": "float32",
    }


def _numbered(names: Sequence[str]) -> dict[str, Any]:
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
