"""The settings of quantization-aware training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from convnext_deploy.config.distill import check_distillation
from convnext_deploy.config.fit import FitConfig
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
    needs_baseline: ClassVar[bool] = True
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
