"""The table of ConvNeXt variants, and how their names are understood.

Sources: arXiv 2201.03545 (v1 tiny to xlarge), arXiv 2301.00808 (v2), timm (v1 atto to nano use the v2 paper's sizes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convnext_deploy.errors import RecipeError, suggest

if TYPE_CHECKING:
    from convnext_deploy.artifact import ModelSpec
    from convnext_deploy.models.convnext import ConvNeXt


@dataclass(frozen=True)
class Variant:
    """One row of the table: depths and widths of the four model stages, version 1 (LayerScale) or 2 (GRN)."""

    version: int
    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]


_SIZES: dict[str, tuple[tuple[int, int, int, int], int]] = {
    # size: (depths, width of the first model stage; it doubles at each of the next three)
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "xlarge": ((3, 3, 27, 3), 256),
    "huge": ((3, 3, 27, 3), 352),
}
_VERSIONS = {1: set(_SIZES) - {"huge"}, 2: set(_SIZES) - {"xlarge"}}
_PREFIX = {1: "convnext_", 2: "convnextv2_"}

VARIANTS: dict[str, Variant] = {
    _PREFIX[version] + size: Variant(version, depths, (width, 2 * width, 4 * width, 8 * width))
    for version in (1, 2)
    for size, (depths, width) in _SIZES.items()
    if size in _VERSIONS[version]
}


def resolve_variant(name: str) -> str:
    """Return the full name of a variant: `tiny` → `convnext_tiny`, `v2-tiny` → `convnextv2_tiny`.

    Raises: RecipeError: if no variant has that name.
    """
    key = name.lower().replace("-", "_")
    for candidate in (key, _PREFIX[1] + key, _PREFIX[2] + key.removeprefix("v2_")):
        if candidate in VARIANTS:
            return candidate
    short = [full.removeprefix(_PREFIX[1]).replace(_PREFIX[2], "v2-") for full in VARIANTS]
    hint = suggest(name, [*short, *VARIANTS])
    raise RecipeError(f"unknown model '{name}'.{hint} Known models: {', '.join(short)}")


def build_model(spec: ModelSpec, *, drop_path_rate: float = 0.0, layer_scale_init: float = 1e-6) -> ConvNeXt:
    """Build the network of `spec` with fresh weights (LayerScale only in v1, GRN only in v2)."""
    from convnext_deploy.models.convnext import ConvNeXt

    variant = VARIANTS[resolve_variant(spec.variant)]
    return ConvNeXt(
        variant.depths,
        variant.dims,
        num_classes=spec.num_classes,
        in_channels=spec.in_channels,
        patch_size=spec.patch_size,
        drop_path_rate=drop_path_rate,
        layer_scale_init=layer_scale_init if variant.version == 1 else None,
        use_grn=variant.version == 2,
    )
