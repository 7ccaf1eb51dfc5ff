"""What an image processor of transformers makes of an image, by its config: `preprocessor_config.json`, `processor_config.json`.

Sources: transformers 5, `ConvNextImageProcessor`, and the processors with `do_center_crop`, such as those of BiT, CLIP and ViT.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convnext_deploy.config.choices import Interpolation
from convnext_deploy.config.image_size import ImageSize, plain_size, show_size
from convnext_deploy.config.records import shown
from convnext_deploy.documents import read_json, reason
from convnext_deploy.errors import CheckpointError

# From this size on ConvNextImageProcessor resizes both sides and does not crop.
SQUASHED_FROM = 384
RESAMPLE: dict[int, Interpolation] = {  # Pillow's numbers
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_LARGEST_CONFIG = 50_000_000  # bytes; 21,841 class names with descriptions take about 2 MB
_DINOV3_SIZE = {"height": 224, "width": 224}
_USUAL = [0.5, 0.5, 0.5]  # mean and std of ConvNextImageProcessor where its config has none


@dataclass(frozen=True)
class Processed:
    """Fields of `Preprocess` by name, without mean and std where these do not fit the network; `remarks` say what was not taken."""

    values: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


def read_processor(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the config of the image processor in a folder, and its file; empty if there is none.

    Raises: CheckpointError: if it cannot be read.
    """
    for path in (folder / name for name in PROCESSOR_FILES):
        if path.is_file():
            found = read_config_file(path)
            inner = found.get("image_processor", found if path.name == PROCESSOR_FILES[0] else {})
            return (inner if isinstance(inner, dict) else {}), path
    return {}, folder / PROCESSOR_FILES[0]


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the object in a config file. Raises: CheckpointError: if there is none."""
    try:
        if (size := path.stat().st_size) > _LARGEST_CONFIG:
            raise CheckpointError(f"{path} has {size} bytes; expected a config file of a few thousand.")
        found = read_json(path, _LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({reason(error)}).") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected a JSON object.")
    return found


def interpret_processor(processor: Mapping[str, Any], channels: int, path: Path) -> Processed:
    """Return what a processor does to an image for a network of so many channels.

    Raises:
        CheckpointError: if it crops images that are not square.
        LookupError, TypeError, ValueError, ArithmeticError: if values are not of their kind.
    """
    remarks = []
    values = _crop_of(processor, path) if _crops_itself(processor) else _convnext_crop(processor, path)
    if processor.get("do_resize") is False:
        remarks.append(
            f"{path.name} leaves images in their own size (do_resize false), and here they are resized to "
            f"{show_size(values['image_size'])} pixels"
        )
    number = processor.get("resample")
    usual = 2 if _is_dinov3(processor) else 3
    values["interpolation"] = RESAMPLE[usual if number is None else number]
    mean, std = _statistics(processor, channels)
    if len(mean) == len(std) == channels:
        values |= {"mean": mean, "std": std}
    else:
        remarks.append(
            f"{path.name} has mean and std for {len(mean)} channels, and the network takes {channels}: they are not taken"
        )
    return Processed(values, tuple(remarks))


def _is_dinov3(processor: Mapping[str, Any]) -> bool:
    """Whether it is that of DINOv3, which squashes images to 224 pixels, bilinearly, and normalizes with ImageNet's statistics."""
    return str(processor.get("image_processor_type", "")).startswith("DINOv3ViTImageProcessor")


def _crops_itself(processor: Mapping[str, Any]) -> bool:
    """Whether the crop has settings of its own; ConvNext's processor takes it from `crop_pct`, and knows none of these."""
    return "do_center_crop" in processor or "crop_size" in processor


def _crop_of(processor: Mapping[str, Any], path: Path) -> dict[str, Any]:
    resized, squash = _sides(processor.get("size", 256), path)
    side = resized
    if processor.get("do_center_crop", True) and (crop := processor.get("crop_size")) is not None:
        side, _ = _sides(crop, path)
    if isinstance(side, tuple) or isinstance(resized, tuple):
        if side != resized:
            raise CheckpointError(
                f"{path} crops {show_size(side)} pixels out of {show_size(resized)}; expected squares, or no crop."
            )
        return {"image_size": side, "crop_pct": 1.0, "crop_mode": "squash"}
    if side > resized:  # transformers fills the border up with black
        raise CheckpointError(
            f"{path} crops {shown(side)} pixels out of {shown(resized)}; expected a crop within the image."
        )
    return {"image_size": side, "crop_pct": side / resized, "crop_mode": "squash" if squash else "center"}


def _convnext_crop(processor: Mapping[str, Any], path: Path) -> dict[str, Any]:
    size = processor.get("size")
    if size is None:
        size = _DINOV3_SIZE if _is_dinov3(processor) else SQUASHED_FROM
    side, both = _sides(size, path)
    squash = both or not isinstance(side, int) or side >= SQUASHED_FROM
    crop_pct = 1.0 if squash else processor.get("crop_pct") or 224 / 256
    return {"image_size": side, "crop_pct": crop_pct, "crop_mode": "squash" if squash else "center"}


def _sides(size: Any, path: Path) -> tuple[ImageSize, bool]:
    """Return a size in pixels, and whether both sides are given."""
    if not isinstance(size, Mapping):
        return int(size), False
    if (side := int(size.get("shortest_edge") or 0)) > 0:
        return side, False
    height, width = (int(size.get(name) or 0) for name in ("height", "width"))
    if not height or not width:
        raise CheckpointError(f"{path} has size {shown(size)}; expected a shortest_edge, or height and width.")
    return plain_size((height, width)), True


def _statistics(processor: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
    # (p·f - m)/s with another factor f than 1/255 is (p/255 - m/(255 f)) / (s/(255 f))
    unit = 255.0 * (processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0)
    if not processor.get("do_normalize", True):
        return [0.0] * channels, [1.0 / unit] * channels
    usual = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD} if _is_dinov3(processor) else {}
    mean, std = (processor.get(name, usual.get(name, _USUAL)) for name in ("image_mean", "image_std"))
    return [value / unit for value in mean], [value / unit for value in std]


def transformers_preprocessor(preprocess: Preprocess) -> dict[str, Any]:
    """Return the `preprocessor_config.json` of a `ConvNextImageProcessor`."""
    side = preprocess.image_size
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side} if isinstance(side, int) else {"height": side[0], "width": side[1]},
        "crop_pct": preprocess.crop_pct,
        "resample": next(number for number, name in RESAMPLE.items() if name == preprocess.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def preprocessor_difference(preprocess: Preprocess) -> str | None:
    """Return how transformers' image processor will differ from `preprocess`, which it cannot express; None if not at all."""
    side = preprocess.image_size
    if not isinstance(side, int):
        return f"transformers makes square images, unlike this artifact's own evaluation at {show_size(side)} pixels"
    squashes = side >= SQUASHED_FROM
    if squashes == (preprocess.crop_mode == "squash") and not (squashes and preprocess.crop_pct < 1):
        return None
    how = "resizes both sides without a crop" if squashes else "resizes the shorter side and crops"
    return f"transformers {how} at {side} pixels, unlike this artifact's own evaluation"
