"""The settings of post-training quantization."""

from dataclasses import dataclass, field
from typing import ClassVar

from convnext_deploy.config.checks import check_fields, require
from convnext_deploy.config.choices import CalibrationMethod, Target
from convnext_deploy.config.stage import StageConfig

CALIBRATION_TAKES_LESS = "lower batch_size or calibration_images"  # what was observed depends a little on both
_GPTQ_INSTEAD = (
    "gptq, which is on by default, has replaced learned rounding and does more in a tenth of the time; leave it out."
)


@dataclass(frozen=True)
class PTQSteps:
    """What is done to a network between folding and INT8, without training.

    `calibration_method`: how the range of an activation is chosen; `auto`: tensor by tensor, by the error at the layer's output.
    `percentile` counts for `percentile` and as a candidate of `auto`. `smoothing` scales channels between a norm or GRN and the
    layer after it (SmoothQuant, arXiv 2211.10438), with `smoothing_alpha` or, None, what suits each layer, which may be nothing.
    `gptq` rounds each weight up or down so that its layer's output stays (2210.17323), and `bias_correction` keeps the mean of
    every channel (1906.04721), both block by block behind the quantized blocks before.
    """

    GONE: ClassVar[dict[str, str]] = dict.fromkeys(("reconstruction", "reconstruction_steps"), _GPTQ_INSTEAD)
    calibration_method: CalibrationMethod = "auto"
    percentile: float = 99.99
    smoothing: bool = True
    smoothing_alpha: float | None = None
    bias_correction: bool = True
    gptq: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        require(50 < self.percentile <= 100, "percentile", self.percentile, "50 < value <= 100")
        if self.smoothing_alpha is not None:
            require(0 <= self.smoothing_alpha <= 1, "smoothing_alpha", self.smoothing_alpha, "0 to 1")
            require(self.smoothing, "smoothing_alpha", self.smoothing_alpha, "only with smoothing = true")


@dataclass(frozen=True)
class PTQConfig(PTQSteps, StageConfig):
    """Post-training quantization with the steps given. `sites`: pattern over layer names → choice, see `quantization.scheme`."""

    kind: ClassVar[str] = "ptq"
    done: ClassVar[str] = "quantized after training"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.ptq"
    result_version: ClassVar[int] = 3  # GPTQ, and weight scales that FP16 holds
    takes_less_memory: ClassVar[str] = CALIBRATION_TAKES_LESS
    target: Target = "tensorrt"
    sites: dict[str, str] = field(default_factory=dict)
    calibration_images: int = 512
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_calibration(self.calibration_images, self.batch_size)


def check_calibration(images: int, batch_size: int) -> None:
    """Check what every calibration has. Raises: RecipeError: if a value is out of range."""
    require(images >= 1, "calibration_images", images, ">= 1")
    require(batch_size >= 1, "batch_size", batch_size, ">= 1")
