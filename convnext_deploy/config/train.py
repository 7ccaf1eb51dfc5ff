"""The settings of a stage that trains, and those of the network of every stage that does."""

from dataclasses import dataclass, field
from typing import ClassVar

from convnext_deploy.config.checks import check_fields, check_size, require
from convnext_deploy.config.choices import CropMode, HeadActivation, Interpolation
from convnext_deploy.config.fit import TAKES_LESS_MEMORY, FitConfig
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.stage import StageConfig


@dataclass(frozen=True)
class ModelConfig:
    """The network of a training stage.

    `image_size`: side of its input in pixels, or height and width.

    `crop_pct` None: that of the initial weights, without any 0.875 from 128 pixels on and 1.0 below. `crop_mode`, `interpolation`,
    `mean`, `std` None: those of the initial weights, without any `center`, `bicubic` and ImageNet's, or 0.5 for grey images.
    `head_hidden_size`: width of a hidden layer before the logits; None: as in the variant, 0: none. `weights`: initial weights, a
    file, an artifact or a name such as `timm/convnext_tiny.fb_in1k`; a head of another size is left out.
    """

    name: str
    image_size: ImageSize = 224
    patch_size: int = 4
    in_channels: int = 3
    crop_pct: float | None = None
    head_hidden_size: int | None = None
    head_activation: HeadActivation = "gelu"
    weights: str | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.patch_size in (2, 4, 8), "patch_size", self.patch_size, "2 (small images), 4 (usual) or 8")
        require(self.in_channels in (1, 3), "in_channels", self.in_channels, "1 (grey) or 3 (RGB)")
        least = 8 * self.patch_size
        size = self.image_size
        require(min(sides_of(size)) >= least, "image_size", size, f">= {least} with patch_size {self.patch_size}")
        check_size(self)
        _ = self.preprocess  # which checks its values
        require(self.weights != "", "weights", self.weights, "a file, a folder or a name")
        if self.head_hidden_size is not None:
            require(self.head_hidden_size >= 0, "head_hidden_size", self.head_hidden_size, ">= 1, or 0 for none")

    @property
    def preprocess(self) -> PreprocessSettings:
        """How images are made ready for the network, as far as the stage says."""
        return PreprocessSettings(
            self.image_size, self.crop_pct, self.crop_mode, self.interpolation, self.mean, self.std
        )


@dataclass(frozen=True)
class TrainConfig(StageConfig):
    """Train from scratch, or fine-tune the stage's source artifact when it has one."""

    kind: ClassVar[str] = "train"
    done: ClassVar[str] = "trained"
    result_version: ClassVar[int] = 3  # depthwise convolutions train in FP32 on a CPU
    implementation: ClassVar[str | None] = "convnext_deploy.stages.train"
    trains: ClassVar[bool] = True
    takes_less_memory: ClassVar[str] = TAKES_LESS_MEMORY
    needs_source: ClassVar[bool] = False
    references: ClassVar[tuple[str, ...]] = ("model.weights",)
    model: ModelConfig
    fit: FitConfig = field(default_factory=FitConfig)

    @property
    def initial_weights(self) -> str | None:
        """Where the initial weights lie, if not in the source."""
        return self.model.weights
