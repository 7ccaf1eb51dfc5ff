"""What a user says of the input of a network, where the file does not tell it or something else is wanted."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_args

from convnext_deploy.config.checks import check_size, require, require_choice
from convnext_deploy.config.choices import CropMode, InputRange, Interpolation
from convnext_deploy.config.image_size import ImageSize, size_option


def option_text(name: str, value: Any) -> str:
    """Return the value of an option as it is typed, with all digits that count: other ones would give another score."""
    if name == "image_size":
        return size_option(value)
    if isinstance(value, list | tuple):
        return ",".join(f"{number:.12g}" for number in value)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class PreprocessSettings:
    """How images are made ready for a network that was brought along. None: as its file says.

    Attributes:
        image_size: side of the network's input in pixels; height and width where it is not square.
        crop_pct: share of the resized image that the centre crop keeps, 0.1 to 1. None with another `image_size`: 0.875 from 128
            pixels on and 1 below.
        crop_mode: `center` resizes the shorter side and keeps the aspect ratio, `squash` resizes both.
        interpolation: how images are resized.
        mean: subtracted from pixel values in [0, 1], one number or one per channel.
        std: then divided by, one number or one per channel, above 0.
        input_range: of the values that an ONNX file of another origin takes: `normalized` by mean and std, or pixels from 0 to 1
            or to 255, which it normalizes itself. None: what its first nodes tell, otherwise `normalized`.
        output_name: the output of such a file with the scores of the classes. None: what names and nodes tell.
    """

    image_size: ImageSize | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_range: InputRange | None = None
    output_name: str | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_size(self)
        require(self.crop_pct is None or 0.1 <= self.crop_pct <= 1, "crop_pct", self.crop_pct, "0.1 to 1.0")
        choices = {"crop_mode": CropMode, "interpolation": Interpolation, "input_range": InputRange}
        for name, known in choices.items():
            if (found := getattr(self, name)) is not None:
                require_choice(name, found, get_args(known))
        for name in ("mean", "std"):
            values = getattr(self, name)
            held = values is None or (len(values) > 0 and all(math.isfinite(value) for value in values))
            require(held, name, values, "one number, or one per channel")
        require(self.std is None or min(self.std) > 0, "std", self.std, "numbers above 0")

    def of_graph(self) -> bool:
        """Whether something is said of what the graph of an ONNX file of another origin takes and gives."""
        return self.input_range is not None or self.output_name is not None

    def asked(self) -> dict[str, Any]:
        """Return what is not None, by the names of the fields."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
