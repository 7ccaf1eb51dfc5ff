"""The settings of a stage that trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.model import ModelConfig
from convnext_deploy.config.stage import StageConfig


@dataclass(frozen=True)
class TrainConfig(StageConfig):
    """Train from scratch, or fine-tune the stage's source artifact when it has one."""

    kind: ClassVar[str] = "train"
    done: ClassVar[str] = "trained"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.train"
    trains: ClassVar[bool] = True
    needs_source: ClassVar[bool] = False
    model: ModelConfig
    fit: FitConfig = field(default_factory=FitConfig)

    @property
    def initial_weights(self) -> str | None:
        """Where the initial weights lie, if not in the source."""
        return self.model.weights
