"""Which tensor is quantized how, per deployment target. PTQ, QAT and the exporters read the same object."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from convnext_deploy.errors import RecipeError, suggest


@dataclass(frozen=True)
class TensorScheme:
    """An integer grid: `real = scale * (integer - zero_point)`, `quant_min <= integer <= quant_max`.

    Symmetric grids have zero_point 0. Per-channel scales have one value per output channel: a weight `(N, K)` or
    `(N, C, h, w)` has a scale `(N,)`; per-tensor scales are scalars `()`.
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    per_channel: bool


@dataclass(frozen=True)
class QuantizationScheme:
    """A deployment target's choice: the layers whose input and weight are quantized, and on which grids.

    `sites` are patterns over module names, as `fnmatch` reads them.
    """

    target: str
    sites: tuple[str, ...]
    activation: TensorScheme
    weight: TensorScheme

    def is_site(self, module_name: str) -> bool:
        """Whether the layer of that name is quantized."""
        return any(fnmatchcase(module_name, pattern) for pattern in self.sites)


_INT8_PER_TENSOR = TensorScheme(-128, 127, symmetric=True, per_channel=False)
_INT8_PER_CHANNEL = TensorScheme(-128, 127, symmetric=True, per_channel=True)

SCHEMES: dict[str, QuantizationScheme] = {
    # TensorRT runs a product in INT8 when both its inputs are quantized, knows symmetric grids only, and is fastest when the
    # outputs stay in float for the GELU or residual add that follows. Depthwise convolutions are memory-bound and split into
    # padded groups in INT8; stem and head are small and sensitive. All of these stay in float.
    "tensorrt": QuantizationScheme(
        target="tensorrt",
        sites=("stages.*.pwconv1", "stages.*.pwconv2", "downsample_layers.[123].1"),
        activation=_INT8_PER_TENSOR,
        weight=_INT8_PER_CHANNEL,
    ),
}


def resolve_scheme(target: str) -> QuantizationScheme:
    """Return the scheme of a deployment target.

    Raises: RecipeError: if there is none of that name.
    """
    if target not in SCHEMES:
        raise RecipeError(
            f"unknown quantization target '{target}'.{suggest(target, SCHEMES)} Known: {', '.join(SCHEMES)}."
        )
    return SCHEMES[target]
