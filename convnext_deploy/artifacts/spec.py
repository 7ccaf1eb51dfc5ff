"""The records of a network, its evaluation transform and its graph's ends, with the limits of what a file may say of them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, get_args

from convnext_deploy.config.checks import check_size
from convnext_deploy.config.choices import (
    Activation,
    CropMode,
    FeatureOutput,
    GraphOutput,
    HeadActivation,
    InputLayout,
    InputType,
    Interpolation,
    NetworkOutput,
)
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.config.records import between

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# far beyond every published network
_Epsilon = Annotated[float, between(0.0, 0.999)]
_Positive = Annotated[float, between(1e-30, 1e30)]
_Stride = Annotated[int, between(1, 2)]
_Dilation = Annotated[int, between(1, 64)]
_HiddenWidth = Annotated[int, between(0, 10**6)]

_INPUTS: dict[InputType, tuple[str, float | None]] = {
    "float32": ("images", None),
    "uint8": ("pixels_uint8", 255.0),
    "float32-0-1": ("pixels_0_1", 1.0),
    "float32-0-255": ("pixels_0_255", 255.0),
}
"""Type of an input → the name that it has in our graphs, and the value of white; None: the images are normalized."""


@dataclass(frozen=True)
class ModelSpec:
    """Which network the weights belong to. None: as in the table of variants.

    `num_classes` 0: a feature extractor, which gives what a head would see, or with `feature_map` the map before the pooling, see
    `output`. `norm_eps` holds for all norms, `head_norm_eps` for the last.
    `head_hidden_size` is the width of a hidden layer before the logits (0: none), `head_activation` what follows it. `head_norm`: a
    LayerNorm of the head's own, after the network's last norm.
    `strides` are those of the downsampling before each model stage, `dilations` those of the convolutions within: timm's networks
    have others than the papers' where the patch size is not 4, or an `output_stride` was asked for.
    `multi_label`: each output is an answer of its own, yes or no, as of a sigmoid, and not one of the classes of an image.
    `hidden_widths`: units between the two linear layers of each block, over all model stages in order, of a pruned network; 0: the
    block is not there, its input goes on. None: four times the channels in every block. See `models.variants.complete_spec`.
    """

    variant: str
    num_classes: Annotated[int, between(0, 10**7)]
    in_channels: Annotated[int, between(1, 10**4)] = 3
    patch_size: Annotated[int, between(1, 1024)] = 4
    head_hidden_size: Annotated[int, between(0, 10**6)] | None = None
    head_activation: HeadActivation = "gelu"
    activation: Activation | None = None
    norm_eps: _Epsilon | None = None
    head_norm_eps: _Epsilon | None = None
    head_norm: bool = False
    strides: tuple[_Stride, _Stride, _Stride, _Stride] = (1, 2, 2, 2)
    dilations: tuple[_Dilation, _Dilation, _Dilation, _Dilation] = (1, 1, 1, 1)
    feature_map: bool = False
    multi_label: bool = False
    hidden_widths: tuple[_HiddenWidth, ...] | None = None

    def settings(self) -> dict[str, Any]:
        """Return all fields for JSON; `hidden_widths` of a pruned network only, so that what is hashed of others stays the same."""
        found = asdict(self)
        if self.hidden_widths is None:
            del found["hidden_widths"]
        return found

    @property
    def name(self) -> str:
        """What reports call the network: its variant, and whether it was pruned."""
        return self.variant if self.hidden_widths is None else f"pruned {self.variant}"

    @property
    def output(self) -> NetworkOutput:
        """What the network gives.

        `logits (N, num_classes)`; `features (N, D)`, behind the pooling, the last norm and a hidden layer of the head; or
        `feature-map (N, D, H, W)`, the last model stage's output behind the last norm, which is applied at every place.
        """
        if self.num_classes:
            return "logits"
        return "feature-map" if self.feature_map else "features"

    @property
    def output_stride(self) -> int:
        """Pixels of the image to a pixel of the last feature map, which is the least side of an image."""
        return self.patch_size * math.prod(self.strides)


@dataclass(frozen=True)
class Preprocess:
    """The evaluation transform: resize to `image_size / crop_pct`, centre crop, scale, normalize.

    `image_size`: one side, or height and width where these differ. `crop_mode` `center` resizes the shorter side (of what is not
    square: until both sides are covered) and keeps the aspect ratio, `squash` resizes both sides. `mean` and `std` are
    per channel, for pixel values in [0, 1].

    `origins`: field → where its value came from, in words; one that is not there was decided by the training here. It is no part of
    the transform: records that differ in it alone are equal. See `artifacts.preprocessing`.
    """

    image_size: ImageSize
    crop_pct: Annotated[float, between(0.05, 1.0)]
    interpolation: Interpolation
    mean: tuple[Annotated[float, between(-1e30, 1e30)], ...]
    std: tuple[_Positive, ...]
    crop_mode: CropMode = "center"
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        # not by `between`: msgspec 0.23 crashes where a number with limits may also be a tuple
        check_size(self)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images that the network sees."""
        return sides_of(self.image_size)

    def settings(self) -> dict[str, Any]:
        """Return what decides how images look, for JSON: all fields but `origins`."""
        return {name: value for name, value in asdict(self).items() if name != "origins"}

    @property
    def resize_size(self) -> ImageSize:
        """Length in pixels of the shorter side, or of both, before the crop; for images that are not square of both in any case."""
        # a quotient such as 224/236, meant to give 236 again, must not end a pixel lower for its rounding
        height, width = (int(side / self.crop_pct + 1e-6) for side in self.sides)
        return height if isinstance(self.image_size, int) else (height, width)


@dataclass(frozen=True)
class GraphIO:
    """What an exported graph takes and gives.

    `input_type` `float32`: images normalized as `Preprocess` says; `uint8`: pixels as decoders give them, RGB, 0 to 255;
    `float32-0-1` and `float32-0-255`: the same as floats, with white at 1 or 255. What takes pixels normalizes them itself.
    `input_layout`: `nchw` `(N, C, S, S)` or `nhwc` `(N, S, S, C)`.
    `output`: `logits (N, classes)`; `probabilities (N, classes)`, their softmax, of a
    multi-label network their sigmoid; `top-k`: the `top_k` largest of these, as
    `scores (N, k)` in descending order and `classes (N, k)` int64; or of a network without head what `ModelSpec.output` says.
    `batch_size` None: any N >= 1.
    `output_names`: which outputs of a graph of another origin these are; two are the best `top_k` scores, logits where `output`
    says so, and whose they are. Empty: those that this tool writes.
    """

    input_type: InputType = "float32"
    input_layout: InputLayout = "nchw"
    output: GraphOutput = "logits"
    top_k: Annotated[int, between(1, 10**7)] = 5
    batch_size: Annotated[int, between(1, 10**9)] | None = None
    output_names: tuple[str, ...] = ()

    @property
    def input_name(self) -> str:
        """Name of the input in a graph that is made here: what takes other values or another layout is called otherwise."""
        name = _INPUTS[self.input_type][0]
        return name if self.input_layout == "nchw" else f"{name}_{self.input_layout}"

    @property
    def white(self) -> float | None:
        """The value of white in the pixels that the graph takes; None: it takes normalized images."""
        return _INPUTS[self.input_type][1]

    @property
    def takes_usual_images(self) -> bool:
        """Whether the graph takes what the network does, so that one file can be put in the place of the other."""
        return self.white is None and self.input_layout == "nchw"

    @property
    def gives_features(self) -> bool:
        """Whether no output is about classes."""
        return self.output in get_args(FeatureOutput)

    @property
    def gives_best_logits(self) -> bool:
        """Whether the scores of the best classes are logits."""
        return self.output == "logits" and len(self.output_names) > 1

    @property
    def gives_best_only(self) -> bool:
        """Whether there are scores of the best classes alone."""
        return self.output == "top-k" or self.gives_best_logits


def default_preprocess(image_size: ImageSize, crop_pct: float | None = None, in_channels: int = 3) -> Preprocess:
    """The usual transform: ImageNet statistics, bicubic, crop 0.875 (1.0 for images too small to cut away a border)."""
    if crop_pct is None:
        crop_pct = 0.875 if min(sides_of(image_size)) >= 128 else 1.0
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if in_channels == 3 else ((0.5,) * in_channels, (0.5,) * in_channels)
    return Preprocess(image_size, crop_pct, "bicubic", mean, std)


def file_header(
    model: ModelSpec,
    preprocess: Preprocess,
    class_names: tuple[str, ...] | None,
    precision: str,
    license: str | None = None,  # noqa: A002  (the header's key)
) -> dict[str, Any]:
    """Return what a weights or ONNX file carries inside, so that it can be opened without its manifest."""
    return {
        "model": model.settings(),
        "preprocess": {
            **preprocess.settings(),
            **({"origins": dict(preprocess.origins)} if preprocess.origins else {}),
        },
        "class_names": class_names,
        "precision": precision,
        "license": license,
    }
