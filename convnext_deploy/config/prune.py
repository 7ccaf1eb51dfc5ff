"""The settings of structured pruning."""

from dataclasses import dataclass
from typing import ClassVar

from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import Activation, PruneMethod
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.errors import RecipeError


@dataclass(frozen=True)
class PruneConfig(StageConfig):
    """Take hidden units out of the blocks of an FP32 network, and whole blocks, and fit what stays to what it gave before.

    Either `widths` says how many units each block keeps, over all model stages in order, 0 for none of the block; or `macs_share`
    how much of the network's multiply-accumulates stay at most, and each block gives what costs least for what it saves.

    `method`: `second-order` removes what the other units make up for best (arXiv 2208.11580, 2302.04089), `taylor` what has the
    smallest first-order effect (1906.10771). The training images in `calibration_images` decide, without their labels.
    `activation` replaces that of the blocks and the stem, such as GELU by ReLU; None: it stays.

    A training recovers what was lost: `distill` with this stage as its source and the dense network as its teacher.
    """

    kind: ClassVar[str] = "prune"
    done: ClassVar[str] = "pruned"
    implementation: ClassVar[str | None] = "convnext_deploy.stages.prune"
    follows_source: ClassVar[bool] = True
    takes_less_memory: ClassVar[str] = "lower calibration_images"
    widths: tuple[int, ...] | None = None
    macs_share: float | None = None
    method: PruneMethod = "second-order"
    activation: Activation | None = None
    calibration_images: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.calibration_images >= 1, "calibration_images", self.calibration_images, ">= 1")
        if (self.widths is None) == (self.macs_share is None):
            found = "neither" if self.widths is None else "both"
            raise RecipeError(f"{found} of widths and macs_share are given; expected one of the two.")
        if self.macs_share is not None:
            require(0 < self.macs_share <= 1, "macs_share", self.macs_share, "> 0, at most 1")
        for place, width in enumerate(self.widths or ()):
            require(0 <= width <= 10**6, f"widths[{place}]", width, "0 to 1000000")
