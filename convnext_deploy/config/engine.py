"""What the two builders of engines share."""

from __future__ import annotations

from dataclasses import dataclass

from convnext_deploy.config.checks import require
from convnext_deploy.config.stage import StageConfig


@dataclass(frozen=True, kw_only=True)
class EngineConfig(StageConfig):
    """The batch sizes that an engine takes, 1 to `max_batch_size`, fastest at the optimal one, and how its build goes about it."""

    optimal_batch_size: int = 1
    max_batch_size: int = 8
    workspace_mib: int = 1024
    optimization_level: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        best, most = self.optimal_batch_size, self.max_batch_size
        require(1 <= best <= most, "optimal_batch_size", best, f"1 to max_batch_size ({most})")
        require(self.workspace_mib >= 1, "workspace_mib", self.workspace_mib, ">= 1")
        require(self.workspace_mib <= 2**20, "workspace_mib", self.workspace_mib, "<= 1048576, which are 1 TiB")
        require(0 <= self.optimization_level <= 5, "optimization_level", self.optimization_level, "0 to 5")

    @property
    def reads_images(self) -> bool:
        """Never: what is INT8 has its ranges in the file that an engine is built from."""
        return False
