"""What a training was called with tells how its network is evaluated: in tables of a file, `args.yaml` beside.

Read as the script that wrote them uses them: timm's `resolve_data_config`, the `build_transform` of the official repositories,
torchvision's `references/classification`, and the usual names of Lightning modules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Preprocess
from convnext_deploy.config.image_size import possible_size
from convnext_deploy.config.records import read_value, shown
from convnext_deploy.documents import read_text, reason
from convnext_deploy.errors import CheckpointError, DeployError
from convnext_deploy.models.checkpoints.beside_weights import plain
from convnext_deploy.models.variants import TIMM_OUTPUT_STRIDES, resolve_variant

ARGUMENTS_FILE = "args.yaml"
_LARGEST_FILE = 1_000_000  # bytes
_SIZES = ("input_size", "img_size", "image_size", "imgsz", "resolution")
_STATISTICS = {
    "mean": ("mean", "img_mean", "image_mean", "pixel_mean"),
    "std": ("std", "img_std", "image_std", "pixel_std"),
}
_USED = {*_SIZES, "crop_pct", "crop_mode", "interpolation", *_STATISTICS["mean"], *_STATISTICS["std"]}
_OF_SCRIPTS = {"args", "hyper_parameters"}  # where all that a training was called with stands
_INCEPTION = 0.5  # mean and std of the official repositories without --imagenet_default_mean_and_std
_SQUASHED_FROM = 384  # from this size on the official repositories resize both sides and do not crop
_NOT_RESIZED = 32  # up to this size they take images as they are
_HINTS: Mapping[str, Any] = Preprocess.__annotations__


@dataclass(frozen=True)
class Told:
    """Fields of `Preprocess` that a file tells, and where in it; `reasons` say why some that it has, `refused`, were not taken."""

    values: Mapping[str, Any]
    origin: str
    reasons: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def read_told_settings(arguments: Mapping[str, Mapping[str, Any]], path: Path, spec: ModelSpec) -> tuple[Told, ...]:
    """Return what a checkpoint and the file beside it tell, the most trustworthy first.

    Args:
        arguments: of the checkpoint, see `Checkpoint`.
        path: the checkpoint.
        spec: its network; `args.yaml` of another one is left alone.

    Raises: CheckpointError: if `args.yaml` cannot be read, or a network is for images that are not square.
    """
    return tuple(
        interpret_settings(table, origin, path, spec.in_channels) for table, origin in _tables(arguments, path, spec)
    )


def read_output_stride(arguments: Mapping[str, Mapping[str, Any]], path: Path, spec: ModelSpec) -> int | None:
    """Return the `output_stride` that timm's network was trained with, which its weights do not show; None: nothing tells.

    Args and `Raises:` as `read_told_settings`.
    """
    found = (_flatten(table)[0].get("output_stride") for table, _ in _tables(arguments, path, spec))
    return next((stride for stride in found if stride in TIMM_OUTPUT_STRIDES), None)


def _tables(
    arguments: Mapping[str, Mapping[str, Any]], path: Path, spec: ModelSpec
) -> list[tuple[Mapping[str, Any], str]]:
    found: list[tuple[Mapping[str, Any], str]] = [
        (table, f"from {name} in the file") for name, table in arguments.items()
    ]
    beside = path.parent / ARGUMENTS_FILE
    if not arguments.keys() & _OF_SCRIPTS and beside.is_file():
        table = _read_yaml(beside)
        if _is_of(table, spec):
            found.append((table, f"from {ARGUMENTS_FILE} beside it"))
    return found


def adapt_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return mean or std for another number of channels as timm does: their average."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = plain(yaml.safe_load(read_text(path, _LARGEST_FILE)))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read as YAML ({reason(error)}).") from None
    return found if isinstance(found, dict) else {}


def _is_of(table: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Whether arguments are those of this network, as far as they say: folders hold files of several."""
    name, classes = table.get("model"), table.get("num_classes")
    if isinstance(name, str):
        try:
            if resolve_variant(name.partition(".")[0]) != spec.variant:
                return False
        except DeployError:
            return False
    return not isinstance(classes, int) or classes == spec.num_classes


def interpret_settings(table: Mapping[str, Any], origin: str, path: Path, channels: int) -> Told:
    """Return what a table of settings tells of how a network of so many channels is evaluated.

    Args:
        table: name → plain value, or a table of such.
        origin: of the table, in words.
        path: of the file, for messages.
        channels: of the network's input.
    """
    flat, unlike = _flatten(table)
    if "val_crop_size" in flat:
        found = _of_torchvision(flat, channels)
    elif "imagenet_default_mean_and_std" in flat:
        found = _of_official(flat, channels)
    else:
        found = _of_timm(flat)
    if isinstance(size := found.get("image_size"), list):
        found["image_size"] = _size(size)
    values: dict[str, Any] = {}
    refused: list[str] = []
    reasons = [
        f"{name} {origin} has several values, {', '.join(map(str, unlike[name][:3]))}, and is not taken"
        for name in unlike.keys() & _USED
    ]
    for name, value in found.items():
        try:
            if value is not None:
                usable = _per_channel(value, found, channels) if name in _STATISTICS else value
                read = read_value(_HINTS[name], usable, name)
                values[name] = possible_size(read) if name == "image_size" else read
        except (ValueError, OverflowError):
            refused.append(name)
            reasons.append(f"{name} {shown(value)} {origin} is not what this network can be given, and is not taken")
    if len(values.keys() & _STATISTICS.keys()) == 1:
        reasons.append(f"mean and std {origin} do not belong together, and are not taken")
        values = {name: value for name, value in values.items() if name not in _STATISTICS}
    return Told(values, origin, tuple(reasons), tuple(refused))


def _flatten(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return names and values without tables, and the names to which inner tables, and none above them, give several values."""
    own = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    inner = [_flatten(value) for value in table.values() if isinstance(value, Mapping)]
    seen: dict[str, list[Any]] = {}
    for flat, unlike in inner:
        for name, values in (*((name, [value]) for name, value in flat.items()), *unlike.items()):
            seen.setdefault(name, []).extend(values)
    agreed = {name: values[0] for name, values in seen.items() if all(value == values[0] for value in values)}
    return {**agreed, **own}, {name: values for name, values in seen.items() if name not in agreed and name not in own}


def _of_timm(table: Mapping[str, Any]) -> dict[str, Any]:
    """As timm's `data/config.py` does: what is None or empty is as published; a list of one number is for all channels."""
    size = next((table[name] for name in _SIZES if table.get(name)), None)
    found = {
        "image_size": size,
        **{name: table.get(name) or None for name in ("crop_pct", "crop_mode", "interpolation")},
    }
    for name, names in _STATISTICS.items():
        found[name] = next((table[each] for each in names if table.get(each) is not None), None)
    return found


def _of_official(table: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """facebookresearch/ConvNeXt and ConvNeXt-V2, `datasets.py`, `build_transform`."""
    size = table.get("input_size")
    found: dict[str, Any] = {"image_size": size, "interpolation": "bicubic"}
    if isinstance(size, int):
        squash = size >= _SQUASHED_FROM or size <= _NOT_RESIZED
        found["crop_mode"] = "squash" if squash else "center"
        found["crop_pct"] = 1.0 if squash else table.get("crop_pct") or 224 / 256
    if table["imagenet_default_mean_and_std"] is False:
        return {**found, "mean": [_INCEPTION], "std": [_INCEPTION]}
    return {**found, **_imagenet(channels)}


def _of_torchvision(table: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """pytorch/vision, `references/classification/presets.py`, `ClassificationPresetEval`."""
    crop, resize = table["val_crop_size"], table.get("val_resize_size")
    both = all(isinstance(size, int) and size > 0 for size in (crop, resize))
    return {
        "image_size": crop,
        "crop_pct": crop / resize if both else None,
        "crop_mode": "center",
        "interpolation": table.get("interpolation"),
        **_imagenet(channels),
    }


def _imagenet(channels: int) -> dict[str, Any]:
    """Return the statistics that a script has built in, which are for RGB."""
    return {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)} if channels == 3 else {}


def _size(size: list[Any]) -> Any:
    """Return height and width, of which libraries put others first, such as the channels; one number where they are the same."""
    sides = size[-2:]
    return sides[0] if len(set(map(str, sides))) == 1 else sides or None


def _per_channel(value: Any, found: Mapping[str, Any], channels: int) -> list[float]:
    """Return mean or std with a number for each channel, for pixel values in [0, 1]. Raises: ValueError: if it is none."""
    values: list[Any] = value if isinstance(value, list) else [value]
    mean = found.get("mean")
    means: list[Any] = mean if isinstance(mean, list) else [mean]
    if not all(type(number) in (int, float) for number in (*values, *means)) or len(values) not in (1, channels):
        raise ValueError(value)
    unit = 255 if max(means) > 1 else 1  # a mean above 1 is of pixel values up to 255
    return [number / unit for number in (values if len(values) == channels else values * channels)]
