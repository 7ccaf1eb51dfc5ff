"""The settings of quantization-aware training, and of the fallback sequence of quantization methods."""

from dataclasses import dataclass, field
from typing import ClassVar

from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import QuantizeMethod, Target
from convnext_deploy.config.distill import check_distillation
from convnext_deploy.config.fit import TAKES_LESS_MEMORY, FitConfig
from convnext_deploy.config.ptq import CALIBRATION_TAKES_LESS, check_calibration
from convnext_deploy.config.stage import StageConfig


@dataclass(frozen=True)
class QATConfig(StageConfig):
    """Quantization-aware training from a PTQ artifact.

    `teacher`: another stage or `source`, such as the teacher that the network was distilled from; None: the artifact's own float
    weights. By default the teacher alone is followed: the aim is the same predictions, not further training on the labels.
    """

    kind: ClassVar[str] = "qat"
    done: ClassVar[str] = "trained with quantization"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.qat"
    trains: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("teacher",)
    takes_less_memory: ClassVar[str] = TAKES_LESS_MEMORY
    needs_baseline: ClassVar[bool] = True
    result_version: ClassVar[int] = 5  # depthwise convolutions train in FP32 on a CPU
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=5, base_learning_rate=4e-4, warmup_epochs=0.5, drop_path_rate=0.0)
    )
    teacher: str | None = None
    temperature: float = 1.0
    distill_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_distillation(self.temperature, self.distill_loss_weight)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Name of the teacher, if it is not the artifact's own float weights."""
        return () if self.teacher is None else (self.teacher,)


@dataclass(frozen=True)
class QuantizeConfig(StageConfig):
    """Try methods of quantization from the cheapest to the strongest, and stop at the first that loses too little to matter.

    A step is good enough when it loses at most `max_drop_pp` percentage points of top-1 on new images, with 95 % confidence (see
    `stages.selection`). It is judged on `selection_images` training images that nothing else sees; of fewer than both counts ask
    for, a third calibrates and the rest judges. Training leaves out those that judge it, a quarter of all at most. `method`: `ptq`
    ends before training, `qat` goes to training at once, from the best of the rest, and `auto` trains only if nothing else is good
    enough. `time_budget_s`: no step is begun that would not end within it; the first one always is. Training settings are those of
    `QATConfig`.
    """

    kind: ClassVar[str] = "quantize"
    done: ClassVar[str] = "quantized"
    result_version: ClassVar[int] = 6  # as `qat`; GPTQ for learned rounding; layers in float are the float ones
    implementation: ClassVar[str | None] = "convnext_deploy.stages.quantize"
    trains: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("teacher",)
    takes_less_memory: ClassVar[str] = CALIBRATION_TAKES_LESS
    target: Target = "tensorrt"
    sites: dict[str, str] = field(default_factory=dict)
    method: QuantizeMethod = "auto"
    max_drop_pp: float = 0.2
    calibration_images: int = 512
    selection_images: int = 4096
    batch_size: int = 32
    time_budget_s: float | None = None
    fit: FitConfig = field(default_factory=lambda: QATConfig().fit)
    teacher: str | None = None
    temperature: float = 1.0
    distill_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_calibration(self.calibration_images, self.batch_size)
        check_distillation(self.temperature, self.distill_loss_weight)
        require(0 <= self.max_drop_pp <= 100, "max_drop_pp", self.max_drop_pp, "0 to 100")
        require(self.selection_images >= 1, "selection_images", self.selection_images, ">= 1")
        if self.time_budget_s is not None:
            require(self.time_budget_s > 0, "time_budget_s", self.time_budget_s, "> 0")

    @property
    def teachers(self) -> tuple[str, ...]:
        """Name of the teacher, if it is not the source's own float weights."""
        return () if self.teacher is None else (self.teacher,)
