"""Values of options that are more than a word or a number."""

from typing import Any

import click

from convnext_deploy.config.image_size import ImageSize, parse_size, sides_of

POSITIVE = click.IntRange(min=1)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.2
    """`0.5` or `0.485,0.456,0.406`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(number) for number in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; expected such as 0.5 or 0.485,0.456,0.406.", param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.2
    """`224`, or `32x48` for 32 rows of 48 pixels."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ImageSize:
        """Return the size."""
        if isinstance(value, int | tuple):
            return value
        size = parse_size(str(value))
        if size is None or min(sides_of(size)) < 1:
            self.fail(f"{value!r} is no size in pixels; expected such as 224, or 32x48 for 32 rows of 48.", param, ctx)
        return size
