"""What a user asks of the preprocessing of a network, where the file does not tell it or something else is wanted."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_args

from convnext_deploy.config.checks import require, require_choice
from convnext_deploy.config.choices import CropMode, Interpolation


@dataclass(frozen=True)
class PreprocessSettings:
    """How images are made ready for a network that was brought along. None: as its file says.

    Attributes:
        image_size: side of the network's input in pixels.
        crop_pct: share of the resized image that the centre crop keeps, 0.1 to 1. None with another `image_size`: 0.875 from 128
            pixels on and 1 below.
        crop_mode: `center` resizes the shorter side and keeps the aspect ratio, `squash` resizes both.
        interpolation: how images are resized.
        mean: subtracted from pixel values in [0, 1], one number or one per channel.
        std: then divided by, one number or one per channel, above 0.
    """

    image_size: int | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(self.image_size is None or self.image_size >= 1, "image_size", self.image_size, ">= 1")
        require(self.crop_pct is None or 0.1 <= self.crop_pct <= 1, "crop_pct", self.crop_pct, "0.1 to 1.0")
        for name, known in (("crop_mode", get_args(CropMode)), ("interpolation", get_args(Interpolation))):
            if (found := getattr(self, name)) is not None:
                require_choice(name, found, known)
        for name in ("mean", "std"):
            values = getattr(self, name)
            held = values is None or (len(values) > 0 and all(math.isfinite(value) for value in values))
            require(held, name, values, "one number, or one per channel")
        require(self.std is None or min(self.std) > 0, "std", self.std, "numbers above 0")

    def asked(self) -> dict[str, Any]:
        """Return what is not None, by the names of the fields."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
