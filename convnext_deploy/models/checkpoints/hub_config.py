"""Read and write the config files that timm and transformers keep beside weights: preprocessing and class names.

timm: `config.json` as its own `save_for_hf` writes it. transformers: `config.json` and `preprocessor_config.json`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from convnext_deploy.config.choices import Interpolation
from convnext_deploy.config.records import read_record
from convnext_deploy.documents import read_json, reason
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.told_settings import adapt_channels
from convnext_deploy.models.variants import (
    TIMM_OUTPUT_STRIDE,
    TIMM_OUTPUT_STRIDES,
    VARIANTS,
    complete_spec,
    timm_output_stride,
)

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_LARGEST_CONFIG = 50_000_000  # bytes; 21,841 class names with descriptions take about 2 MB
# From this size on transformers' ConvNextImageProcessor resizes both sides and does not crop.
_SQUASHED_FROM = 384
_RESAMPLE: dict[int, Interpolation] = {  # Pillow's numbers
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
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
TRANSFORMERS_DEFAULT_EPS = 1e-12  # of the last norm; the other norms have 1e-6, which no config changes


@dataclass(frozen=True)
class HubConfig:
    """What a config file says: `changes` to the fields of a `ModelSpec`, `license` of the weights; None where it says nothing.

    `image_size` of one that says no more of the preprocessing. `output_stride` of timm's network.
    """

    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    image_size: int | None = None
    output_stride: int = TIMM_OUTPUT_STRIDE


def read_hub_config(folder: Path, spec: ModelSpec) -> HubConfig | None:
    """Read the config files in a folder of weights; None if there are none, or another tool's.

    Raises: CheckpointError: if they are damaged, or ask for a network that there is not.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    config = _read_json(path)
    try:
        if "architecture" in config or "pretrained_cfg" in config:
            return _read_timm(config, spec, path)
        if str(config.get("model_type", "")) in ("convnext", "convnextv2"):
            processor = folder / PREPROCESSOR
            return _read_transformers(config, _read_json(processor) if processor.is_file() else {}, spec, path)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path} or {PREPROCESSOR} is damaged ({type(error).__name__}: {error}).") from None
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _LARGEST_CONFIG:
            raise CheckpointError(f"{path} has {size} bytes; expected a config file of a few thousand.")
        found = read_json(path, _LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({reason(error)}).") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected a JSON object.")
    return found


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
        raise CheckpointError(f"{path} sets output_stride {output_stride!r}; timm knows {TIMM_OUTPUT_STRIDES}.")
    norms = [row.norm + variant for variant in _TIMM_NORM_VARIANTS]
    if "norm_layer" in arguments and arguments["norm_layer"] not in norms:
        # norms with equal weights compute different things
        raise CheckpointError(
            f"{path} sets norm_layer {arguments['norm_layer']!r}; {spec.variant} has a {row.norm} here."
        )
    pool = arguments.pop("global_pool", config.get("global_pool", "avg"))
    unknown = sorted(set(arguments) - _TIMM_TOLD_BY_SHAPES)
    if unknown or pool != "avg":
        what = f"model_args.{unknown[0]}" if unknown else f"global_pool '{pool}'"
        raise CheckpointError(f"{path} sets {what}, which this tool's ConvNeXt does not have.")
    _, height, width = settings.get("input_size", (3, 224, 224))
    if height != width:
        raise CheckpointError(f"{path} asks for images of {height}×{width} pixels; expected square ones.")
    mode = settings.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise CheckpointError(f"{path} has crop_mode '{mode}'; known are 'center' and 'squash'.")
    interpolation = settings.get("interpolation") or "bicubic"
    if interpolation == "random":  # of training: each image gets one of two
        interpolation = "bicubic"
    places = (config.get("label_names"), settings.get("label_names"), settings.get("labels"))
    names = next((found for found in places if found), None)
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return HubConfig(
        _preprocess(
            spec, height, settings.get("crop_pct", 0.875), interpolation,
            adapt_channels(settings.get("mean") or IMAGENET_MEAN, spec.in_channels),
            adapt_channels(settings.get("std") or IMAGENET_STD, spec.in_channels), mode,
        ),
        _class_names(names, spec),
        changes,
        None if settings.get("license") is None else str(settings["license"]),
        output_stride=output_stride,
    )  # fmt: skip


def _read_transformers(
    config: Mapping[str, Any], processor: Mapping[str, Any], spec: ModelSpec, path: Path
) -> HubConfig:
    activation = _look_up(_TRANSFORMERS_ACTIVATIONS, config.get("hidden_act", "gelu"), "hidden_act", path)
    changes: dict[str, Any] = {"head_norm_eps": _positive(config.get("layer_norm_eps", TRANSFORMERS_DEFAULT_EPS))}
    if activation != complete_spec(spec).activation:
        changes["activation"] = activation
    labels = config.get("id2label") or {}
    names = [labels[key] for key in sorted(labels, key=int)]
    if names == [f"LABEL_{i}" for i in range(len(names))]:
        names = []
    if not processor:
        side = config.get("image_size")
        return HubConfig(None, _class_names(names, spec), changes, image_size=side if type(side) is int else None)
    size = processor.get("size", _SQUASHED_FROM)
    if isinstance(size, dict):
        side = int(size.get("shortest_edge") or size.get("height") or 0)
        squash = "shortest_edge" not in size or side >= _SQUASHED_FROM
        if not side or ("height" in size and size.get("width") != side):
            raise CheckpointError(f"{path.with_name(PREPROCESSOR)} has size {size}; expected a square.")
    else:
        side, squash = int(size), int(size) >= _SQUASHED_FROM
    crop_pct = 1.0 if squash else processor.get("crop_pct") or 224 / 256
    # (p·f - m)/s with another factor f than 1/255 is (p/255 - m/(255 f)) / (s/(255 f))
    unit = 255.0 * (processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0)
    normalized = processor.get("do_normalize", True)
    mean = [value / unit for value in processor["image_mean"]] if normalized else [0.0] * spec.in_channels
    std = [value / unit for value in processor["image_std"]] if normalized else [1.0 / unit] * spec.in_channels
    interpolation = _RESAMPLE[3 if processor.get("resample") is None else processor["resample"]]
    preprocess = _preprocess(spec, side, crop_pct, interpolation, mean, std, "squash" if squash else "center")
    return HubConfig(preprocess, _class_names(names, spec), changes)


def _positive(value: Any) -> float:
    found = float(value)
    if not 0 < found < math.inf:
        raise ValueError(f"{found} for the eps of a norm")
    return found


def _look_up(known: Mapping[str, str], found: object, name: str, path: Path) -> str:
    if not isinstance(found, str) or found not in known:
        raise CheckpointError(f"{path} has {name} {found!r}; known are {', '.join(known)}.")
    return known[found]


def _preprocess(
    spec: ModelSpec, side: int, crop_pct: float, interpolation: str, mean: Any, std: Any, mode: Any
) -> Preprocess | None:
    """Return the transform, or None where mean and std do not belong to the network's input."""
    if not mean or not std or not len(mean) == len(std) == spec.in_channels:
        return None
    found = {"image_size": int(side), "crop_pct": crop_pct, "interpolation": interpolation, "mean": mean, "std": std}
    return read_record(Preprocess, {**found, "crop_mode": mode}, "preprocessing")


def _class_names(names: Any, spec: ModelSpec) -> tuple[str, ...] | None:
    return tuple(str(name) for name in names) if names and len(names) == spec.num_classes else None


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
    side = preprocess.image_size
    return {
        "architecture": spec.variant,
        "num_classes": spec.num_classes,
        "num_features": row.dims[-1],
        "global_pool": "avg",
        **({"label_names": list(class_names)} if class_names else {}),
        "model_args": {name: value for name, (value, usual) in arguments.items() if value != usual},
        "pretrained_cfg": {
            "num_classes": spec.num_classes,
            "input_size": [spec.in_channels, side, side],
            "fixed_input_size": False,
            "pool_size": [side // 32, side // 32],
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
    """Return the `config.json` of a `ConvNextForImageClassification` or `ConvNextV2ForImageClassification`."""
    row = complete_spec(spec)
    name = "ConvNextForImageClassification" if row.version == 1 else "ConvNextV2ForImageClassification"
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
        "id2label": {str(i): label for i, label in enumerate(names)},
        "label2id": {label: i for i, label in enumerate(names)},
        "dtype": "float32",
    }


def transformers_preprocessor(preprocess: Preprocess) -> dict[str, Any]:
    """Return the `preprocessor_config.json` of a `ConvNextImageProcessor`."""
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": preprocess.image_size},
        "crop_pct": preprocess.crop_pct,
        "resample": next(number for number, name in _RESAMPLE.items() if name == preprocess.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def preprocessor_difference(preprocess: Preprocess) -> str | None:
    """Return how transformers' image processor will differ from `preprocess`, which it cannot express; None if not at all."""
    squashes = preprocess.image_size >= _SQUASHED_FROM
    if squashes == (preprocess.crop_mode == "squash") and not (squashes and preprocess.crop_pct < 1):
        return None
    how = "resizes both sides without a crop" if squashes else "resizes the shorter side and crops"
    return f"transformers {how} at {preprocess.image_size} pixels, unlike this artifact's own evaluation"
