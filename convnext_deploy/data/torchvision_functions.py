"""Torchvision's functions on images, imported when the first training begins.

With them come its networks and the compiler of PyTorch: most of the time that a program takes to start.
"""

import functools
from typing import Any


@functools.cache
def functions() -> Any:
    """Return the module of functions that take Pillow's images and tensors."""
    from torchvision.transforms.v2 import functional

    return functional
