"""The blocks of a network as far as their time depends on it, and the hidden widths that each of them may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.models.variants import complete_spec
from convnext_deploy.models.zoo.cost import feature_map_sides

if TYPE_CHECKING:
    from convnext_deploy.artifacts.spec import ModelSpec

WIDTH_STEP = 32
"""Of hidden units: a tile of tensor cores, and two vectors of VNNI; others are computed as if they were so many."""


@dataclass(frozen=True)
class BlockShape:
    """A block: `channels` on a map of `height` x `width` pixels, the side of its depthwise kernel, and its `hidden` units.

    `stage`: its model stage, from 0. `hidden` 0: the block is not there.
    """

    stage: int
    channels: int
    height: int
    width: int
    kernel_size: int
    hidden: int

    @property
    def name(self) -> str:
        """What its time depends on, in words."""
        return f"{self.channels} channels, {self.height}×{self.width}, kernel {self.kernel_size}"


def block_shapes(spec: ModelSpec, image_size: ImageSize) -> tuple[BlockShape, ...]:
    """Return the blocks of a network, over all model stages in order.

    Raises: RecipeError: if the image is too small.
    """
    row = complete_spec(spec)
    heights, widths = (feature_map_sides(spec, side) for side in sides_of(image_size))
    return tuple(
        BlockShape(stage, row.dims[stage], heights[stage], widths[stage], row.kernel_sizes[stage], hidden)
        for stage, hiddens in enumerate(row.block_widths)
        for hidden in hiddens
    )


def candidate_widths(hidden: int, step: int = WIDTH_STEP) -> tuple[int, ...]:
    """Return the hidden widths that a block of `hidden` units may get: 0, which removes it, multiples of `step`, and its own."""
    return (0, *range(step, hidden, step), hidden) if hidden else (0,)
