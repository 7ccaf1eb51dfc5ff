"""One planted trap: a graph that has it, one that is cured, and where it must be found."""

from __future__ import annotations

from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Case:
    """A trap in a graph. `tensorrt`: what TensorRT-RTX makes of it, `refuses` or `float` products; empty: it tells nothing."""

    trap: str
    label: str
    planted: onnx.ModelProto
    cured: onnx.ModelProto
    places: tuple[str, ...]
    tensorrt: str = ""

    @property
    def name(self) -> str:
        """What pytest calls it."""
        return f"{self.trap}-{self.label}"
