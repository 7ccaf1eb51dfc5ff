"""A case of a rule: a graph that breaks it, the same one fixed, and where the rule must find it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Case:
    """A broken rule. `tensorrt`: what TensorRT-RTX makes of it, `refuses`, or `float` nodes; empty: it tells nothing."""

    rule: str
    label: str
    broken: onnx.ModelProto
    fixed: onnx.ModelProto
    places: tuple[str, ...]
    tensorrt: str = ""

    @property
    def name(self) -> str:
        """What pytest calls it."""
        return f"{self.rule}-{self.label}"
