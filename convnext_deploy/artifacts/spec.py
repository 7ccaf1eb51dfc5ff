"""What the weights belong to and what their images look like: the records, and the checks of what a file says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

from convnext_deploy.config.choices import GraphOutput, HeadActivation, InputLayout, InputType

Interpolation = Literal["bicubic", "bilinear"]
CropMode = Literal["center", "squash"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """Which network the weights belong to. None: as in the table of variants.

    `num_classes` 0: the weights have no classification head. `norm_eps` holds for all norms, `head_norm_eps` for the last.
    `head_hidden_size` is the width of a hidden layer before the logits (0: none), `head_activation` what follows it.
    """

    variant: str
    num_classes: int
    in_channels: int = 3
    patch_size: int = 4
    head_hidden_size: int | None = None
    head_activation: HeadActivation = "gelu"
    activation: Activation | None = None
    norm_eps: float | None = None
    head_norm_eps: float | None = None


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform: resize to `image_size / crop_pct`, centre crop, scale, normalize.

    `crop_mode` `center` resizes the shorter side and keeps the aspect ratio, `squash` resizes both sides. `mean` and `std` are
    per channel, for pixel values in [0, 1].
    """

    image_size: int
    crop_pct: float
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: CropMode = "center"

    @property
    def resize_size(self) -> int:
        """Length in pixels of the shorter side, or of both, before the crop."""
        # a quotient such as 224/236, meant to give 236 again, must not end a pixel lower for its rounding
        return int(self.image_size / self.crop_pct + 1e-6)


@dataclass(frozen=True)
class GraphIO:
    """What an exported graph takes and gives.

    `input_type` `float32`: images normalized as `Preprocess` says; `uint8`: pixels as decoders give them, RGB, 0 to 255, which
    the graph normalizes itself. `input_layout`: `nchw` `(N, C, S, S)` or `nhwc` `(N, S, S, C)`.
    `output`: `logits (N, classes)`; `probabilities (N, classes)`, their softmax; `top-k`: the `top_k` largest of these, as
    `scores (N, k)` in descending order and `classes (N, k)` int64. `batch_size` None: any N >= 1.
    """

    input_type: InputType = "float32"
    input_layout: InputLayout = "nchw"
    output: GraphOutput = "logits"
    top_k: int = 5
    batch_size: int | None = None


def default_preprocess(image_size: int, crop_pct: float | None = None, in_channels: int = 3) -> Preprocess:
    """The usual transform: ImageNet statistics, bicubic, crop 0.875 (1.0 for images too small to cut away a border)."""
    if crop_pct is None:
        crop_pct = 0.875 if image_size >= 128 else 1.0
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if in_channels == 3 else ((0.5,) * in_channels, (0.5,) * in_channels)
    return Preprocess(image_size, crop_pct, "bicubic", mean, std)


# What a file may say of a network and its images before it is believed; far beyond every published one.
_LARGEST = {"num_classes": 10**7, "in_channels": 10**4, "patch_size": 1024, "head_hidden_size": 10**6}
_LARGEST_SIDE, _SMALLEST_CROP = 16384, 0.05


def _require(holds: bool, name: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} {str(value)[:80]!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # NaN compares false


def check_model(model: ModelSpec) -> ModelSpec:
    """Return a spec that a file held. Raises: ValueError: if it can be none."""
    _require(isinstance(model.variant, str), "variant", model.variant)
    for name, largest in _LARGEST.items():
        value = getattr(model, name)
        smallest = 0 if name in ("num_classes", "head_hidden_size") else 1
        known = type(value) is int and smallest <= value <= largest
        _require(known or (value is None and name == "head_hidden_size"), name, value)
    _require(model.head_activation in get_args(HeadActivation), "head_activation", model.head_activation)
    _require(model.activation in (None, *get_args(Activation)), "activation", model.activation)
    for name in ("norm_eps", "head_norm_eps"):
        value = getattr(model, name)
        _require(value is None or (_is_finite(value) and 0 <= value < 1), name, value)
    return model


def check_preprocess(preprocess: Preprocess) -> Preprocess:
    """Return a transform that a file held. Raises: ValueError: if it can be none."""
    side, crop = preprocess.image_size, preprocess.crop_pct
    _require(type(side) is int and 1 <= side <= _LARGEST_SIDE, "image_size", side)
    _require(_is_finite(crop) and _SMALLEST_CROP <= crop <= 1, "crop_pct", crop)
    _require(preprocess.interpolation in get_args(Interpolation), "interpolation", preprocess.interpolation)
    _require(preprocess.crop_mode in get_args(CropMode), "crop_mode", preprocess.crop_mode)
    mean, std = preprocess.mean, preprocess.std
    _require(len(mean) == len(std) and all(map(_is_finite, mean)), "mean", mean)
    _require(all(_is_finite(value) and value > 0 for value in std), "std", std)
    return preprocess


def read_model(record: Mapping[str, Any]) -> ModelSpec:
    """Return what `dataclasses.asdict` and JSON made of a `ModelSpec`. Raises: TypeError, ValueError: if it is none."""
    return check_model(ModelSpec(**record))


def read_preprocess(record: Mapping[str, Any]) -> Preprocess:
    """Return what `dataclasses.asdict` and JSON made of a `Preprocess`. Raises: KeyError, TypeError, ValueError: if it is none."""
    return check_preprocess(Preprocess(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])}))


def read_graph_io(details: Mapping[str, Any]) -> GraphIO:
    """Return the entry `io` of an artifact's details; what every graph had before there was one, if it has none.

    Raises: TypeError, ValueError: if it is no `GraphIO`.
    """
    found = GraphIO(**details.get("io", {}))
    for name, choices in get_type_hints(GraphIO).items():
        if choices is not int and name != "batch_size":
            _require(getattr(found, name) in get_args(choices), name, getattr(found, name))
    _require(type(found.top_k) is int and found.top_k >= 1, "top_k", found.top_k)
    batch = found.batch_size
    _require(batch is None or (type(batch) is int and batch >= 1), "batch_size", batch)
    return found


def check_header(header: Mapping[str, Any]) -> None:
    """Check that the parts of a file's header belong together. Raises: KeyError, TypeError, ValueError: if they do not."""
    model, names, details = read_model(header["model"]), header["class_names"], header.get("details", {})
    _require(len(header["preprocess"]["mean"]) == model.in_channels, "mean", header["preprocess"]["mean"])
    _require(isinstance(header["precision"], str), "precision", header["precision"])
    _require(isinstance(header.get("license"), str | None), "license", header.get("license"))
    _require(isinstance(details, dict) and isinstance(details.get("target", ""), str), "details", details)
    read_graph_io(details)
    sites = details.get("sites", {})
    _require(isinstance(sites, dict) and all(isinstance(choice, str) for choice in sites.values()), "details", details)
    if names is not None:
        _require(len(names) == model.num_classes and all(isinstance(name, str) for name in names), "class_names", names)


def file_header(
    model: ModelSpec,
    preprocess: Preprocess,
    class_names: tuple[str, ...] | None,
    precision: str,
    license: str | None = None,  # noqa: A002  (the header's key)
) -> dict[str, Any]:
    """Return what a weights or ONNX file carries inside, so that it can be opened without its manifest."""
    return {
        "model": asdict(model),
        "preprocess": asdict(preprocess),
        "class_names": class_names,
        "precision": precision,
        "license": license,
    }
