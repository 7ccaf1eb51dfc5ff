"""An image file as the package decodes it."""

from pathlib import Path

from PIL import Image

from convnext_deploy.data.decoding import decode_image, encoded_file


def read_image(path: Path) -> Image.Image:
    """Return an image file as upright 8-bit grey or RGB. Raises: DataError: naming the file, if it cannot be read."""
    return decode_image(encoded_file(path))
