"""Read which products a TensorRT-RTX plan computes in INT8, from the intermediate code that it holds as text."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TENSOR = re.compile(r'=\{ [^\n]*?name="([^"]+)"[^\n]* type=(\w+) \}')
_PRODUCT = re.compile(r'(?:corrltn|fully_connected)=\{ name="([^"]+)" output=\{[^}]*\} input=\{([^}]*)\}')


@dataclass(frozen=True)
class PlanProduct:
    """A convolution or matrix product: the ONNX node it came from, and the types of its activation and weight."""

    name: str
    types: tuple[str, ...]


def read_products(plan: bytes) -> list[PlanProduct]:
    """Return the products of a plan; none where this release writes its plans differently, for the format is undocumented."""
    text = plan.decode("latin-1")
    types = dict(_TENSOR.findall(text))
    return [
        PlanProduct(name, tuple(types.get(operand, "unknown") for operand in re.findall(r'"([^"]+)"', operands)[:2]))
        for name, operands in _PRODUCT.findall(text)
    ]
