"""The size of a network's input in pixels: one number where it is square, otherwise height and width."""

import re

ImageSize = int | tuple[int, int]
"""Side of a square, or height and width."""

LARGEST_SIDE = 16384  # pixels of a network's input
_PAIR = re.compile(r"\s*(\d{1,9})\s*(?:[x×X]\s*(\d{1,9})\s*)?")


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def possible_size(size: ImageSize) -> ImageSize:
    """Return a size that images can have. Raises: ValueError: if it is none."""
    if not all(1 <= side <= LARGEST_SIDE for side in sides_of(size)):
        raise ValueError(f"image_size {size} is out of range, 1 to {LARGEST_SIDE}")
    return size


def plain_size(size: ImageSize) -> ImageSize:
    """Return a size in the one form that it has: that of a square is a number."""
    return size[0] if isinstance(size, tuple) and len(set(size)) == 1 else size


def show_size(size: ImageSize) -> str:
    """Return a size in words: `224`, or `32×48` for 32 rows of 48 pixels."""
    return str(size) if isinstance(size, int) else f"{size[0]}×{size[1]}"


def size_option(size: ImageSize) -> str:
    """Return a size as the command line takes it."""
    return show_size(size).replace("×", "x")


def parse_size(text: str) -> ImageSize | None:
    """Return the size in a text such as `224` or `32x48`, height x width; None if it is none."""
    found = _PAIR.fullmatch(text)
    if found is None:
        return None
    return int(found[1]) if found[2] is None else plain_size((int(found[1]), int(found[2])))
