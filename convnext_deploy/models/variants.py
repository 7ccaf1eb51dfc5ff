"""The table of ConvNeXt variants, by their full and short names.

Sources: arXiv 2201.03545 (v1 tiny to xlarge), arXiv 2301.00808 (v2), timm (all others; its names are used).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from convnext_deploy.config.choices import Activation
from convnext_deploy.errors import RecipeError, suggest

if TYPE_CHECKING:
    from convnext_deploy.artifacts.spec import ModelSpec
    from convnext_deploy.models.convnext import ConvNeXt

Four = tuple[int, int, int, int]
MLP_RATIO = 4  # as in `convnext.py`, which imports PyTorch
TIMM_OUTPUT_STRIDES = (32, 16, 8)
"""What timm takes as `output_stride`, the usual one first."""
TIMM_OUTPUT_STRIDE = TIMM_OUTPUT_STRIDES[0]


@dataclass(frozen=True)
class Variant:
    """One row of the table: version 1 (LayerScale) or 2 (GRN), depths and widths of the model stages, and what is unusual.

    The fields are arguments of `ConvNeXt`, except `pointwise_convolutions`: whether timm keeps the pointwise layers of this
    variant as 1×1 convolutions, which only changes the shape of their weights. `hidden_widths` is of pruned networks alone.
    """

    version: Literal[1, 2]
    depths: Four
    dims: Four
    pointwise_convolutions: bool = False
    stem: Literal["patch", "overlap", "overlap_act"] = "patch"
    stem_dim: int | None = None
    kernel_sizes: Four = (7, 7, 7, 7)
    norm: Literal["layernorm", "rmsnorm", "simplenorm"] = "layernorm"
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    head_norm_first: bool = False
    head_hidden_size: int | None = None
    hidden_widths: tuple[int, ...] | None = None

    @property
    def block_widths(self) -> tuple[tuple[int, ...], ...]:
        """Hidden units of each block, by model stage; 0: the block is not there."""
        if self.hidden_widths is None:
            return tuple((MLP_RATIO * dim,) * depth for dim, depth in zip(self.dims, self.depths, strict=True))
        ends = [*itertools.accumulate(self.depths)]
        return tuple(self.hidden_widths[end - depth : end] for end, depth in zip(ends, self.depths, strict=True))


def _doubling(version: Literal[1, 2], depths: Four, width: int, *, pointwise_convolutions: bool = False) -> Variant:
    return Variant(version, depths, (width, 2 * width, 4 * width, 8 * width), pointwise_convolutions)


_ZEPTO = replace(_doubling(1, (2, 2, 4, 2), 32, pointwise_convolutions=True), norm="simplenorm")
_ATTO = _doubling(1, (2, 2, 6, 2), 40, pointwise_convolutions=True)
_FEMTO = _doubling(1, (2, 2, 6, 2), 48, pointwise_convolutions=True)
_PICO = _doubling(1, (2, 2, 6, 2), 64, pointwise_convolutions=True)
_NANO = _doubling(1, (2, 2, 8, 2), 80, pointwise_convolutions=True)
_TINY = _doubling(1, (3, 3, 9, 3), 96)
_SMALL = _doubling(1, (3, 3, 27, 3), 96)
_BASE = _doubling(1, (3, 3, 27, 3), 128)
_LARGE = _doubling(1, (3, 3, 27, 3), 192)
_TEST = Variant(1, (1, 1, 1, 1), (32, 64, 96, 128), norm_eps=1e-5)

VARIANTS: dict[str, Variant] = {
    "convnext_zepto_rms": _ZEPTO,
    "convnext_zepto_rms_ols": replace(_ZEPTO, stem="overlap_act"),
    "convnext_atto": _ATTO,
    "convnext_atto_ols": replace(_ATTO, stem="overlap", stem_dim=24),
    "convnext_atto_rms": replace(_ATTO, norm="rmsnorm"),
    "convnext_femto": _FEMTO,
    "convnext_femto_ols": replace(_FEMTO, stem="overlap", stem_dim=24),
    "convnext_pico": _PICO,
    "convnext_pico_ols": replace(_PICO, stem="overlap", stem_dim=32),
    "convnext_nano": _NANO,
    "convnext_nano_ols": replace(_NANO, stem="overlap", stem_dim=80),
    "convnext_tiny": _TINY,
    "convnext_tiny_hnf": replace(_TINY, pointwise_convolutions=True, head_norm_first=True),
    "convnext_small": _SMALL,
    "convnext_base": _BASE,
    "convnext_large": _LARGE,
    "convnext_large_mlp": replace(_LARGE, head_hidden_size=1536),
    "convnext_xlarge": _doubling(1, (3, 3, 27, 3), 256),
    "convnext_xxlarge": replace(_doubling(1, (3, 4, 30, 3), 384), norm_eps=1e-5),
    "convnextv2_atto": replace(_ATTO, version=2),
    "convnextv2_femto": replace(_FEMTO, version=2),
    "convnextv2_pico": replace(_PICO, version=2),
    "convnextv2_nano": replace(_NANO, version=2),
    "convnextv2_tiny": replace(_TINY, version=2),
    "convnextv2_small": replace(_SMALL, version=2),
    "convnextv2_base": replace(_BASE, version=2),
    "convnextv2_large": replace(_LARGE, version=2),
    "convnextv2_huge": _doubling(2, (3, 3, 27, 3), 352),
    # timm's own test networks: no accuracy to speak of, but they exercise every unusual option in a moment
    "test_convnext": Variant(1, (1, 2, 4, 2), (24, 32, 48, 64), norm_eps=1e-5, activation="gelu_tanh"),
    "test_convnext2": replace(_TEST, activation="gelu_tanh"),
    "test_convnext3": replace(_TEST, kernel_sizes=(7, 5, 5, 3), activation="silu"),
}
_V1, _V2 = "convnext_", "convnextv2_"


def short_name(variant: str) -> str:
    """Return the name that people type: `convnext_tiny` → `tiny`, `convnextv2_tiny` → `v2-tiny`."""
    return variant.removeprefix(_V1).replace(_V2, "v2-")


def resolve_variant(name: str) -> str:
    """Return the full name of a variant: `tiny` → `convnext_tiny`, `v2-tiny` → `convnextv2_tiny`.

    Raises: RecipeError: if no variant has that name.
    """
    key = name.lower().replace("-", "_")
    for candidate in (key, _V1 + key, _V2 + key.removeprefix("v2_")):
        if candidate in VARIANTS:
            return candidate
    short = [short_name(full) for full in VARIANTS]
    hint = suggest(name, [*short, *VARIANTS])
    raise RecipeError(f"unknown model '{name}'.{hint} Known models: {', '.join(short)}")


def complete_spec(spec: ModelSpec) -> Variant:
    """Return the row of the table for a network, with what the spec changes in it.

    Raises: RecipeError: if there is no such variant, or `hidden_widths` are not one for each of its blocks, one > 0.
    """
    row = VARIANTS[resolve_variant(spec.variant)]
    hidden = row.head_hidden_size if spec.head_hidden_size is None else spec.head_hidden_size
    return replace(
        row,
        activation=spec.activation or row.activation,
        norm_eps=row.norm_eps if spec.norm_eps is None else spec.norm_eps,
        head_hidden_size=hidden or None,
        hidden_widths=_check_widths(spec, row),
    )


def _check_widths(spec: ModelSpec, row: Variant) -> tuple[int, ...] | None:
    widths, blocks = spec.hidden_widths, sum(row.depths)
    if widths is None:
        return None
    if len(widths) != blocks:
        raise RecipeError(
            f"hidden_widths has {len(widths)} entries; expected {blocks}, one for each block of {spec.variant}."
        )
    if min(widths) < 0 or not any(widths):
        raise RecipeError(
            f"hidden_widths = {list(widths)} is out of range; expected numbers >= 0, and at least one of them > 0."
        )
    return None if widths == dense_widths(row) else tuple(widths)


def dense_widths(row: Variant) -> tuple[int, ...]:
    """Return the hidden units of each block of a network that was not pruned."""
    return tuple(itertools.chain.from_iterable(replace(row, hidden_widths=None).block_widths))


def with_widths(spec: ModelSpec, widths: Sequence[int]) -> ModelSpec:
    """Return the spec of a network with so many hidden units in each block; `hidden_widths` is None if that is all of them.

    Raises: RecipeError: as `complete_spec`.
    """
    found = replace(spec, hidden_widths=tuple(widths))
    return replace(found, hidden_widths=complete_spec(found).hidden_widths)


def feature_width(spec: ModelSpec) -> int:
    """Return the number of features of an image, or at a place of the map: what the head of a network sees."""
    row = complete_spec(spec)
    return (None if spec.feature_map else row.head_hidden_size) or row.dims[-1]


def timm_layout(patch_size: int, output_stride: int = TIMM_OUTPUT_STRIDE) -> tuple[Four, Four]:
    """Return the strides and dilations of the model stages of timm's ConvNeXt, whose stem has the stride `patch_size`.

    A stem of stride 2 is followed by a downsampling at once. Where the map would become smaller than 1/`output_stride` of the
    image, a model stage is dilated instead.

    Source: timm, `models/convnext.py`, `ConvNeXt.__init__`.
    """
    reached, dilation = patch_size, 1
    strides, dilations = [], []
    for stage in range(4):
        stride = 2 if reached == 2 or stage else 1
        if reached >= output_stride and stride > 1:
            dilation, stride = 2 * dilation, 1
        reached *= stride
        strides.append(stride)
        dilations.append(dilation)
    return cast(Four, tuple(strides)), cast(Four, tuple(dilations))


def timm_output_stride(spec: ModelSpec) -> int | None:
    """Return the `output_stride` with which timm makes a network with these strides and dilations; None: it makes none."""
    layout = spec.strides, spec.dilations
    return next((stride for stride in TIMM_OUTPUT_STRIDES if timm_layout(spec.patch_size, stride) == layout), None)


def build_model(
    spec: ModelSpec,
    *,
    drop_path_rate: float = 0.0,
    layer_scale_init: float = 1e-6,
    head_input_dropout: float = 0.0,
    head_dropout: float = 0.0,
    gradient_checkpointing: bool = False,
) -> ConvNeXt:
    """Build the network of `spec` with fresh weights (LayerScale only in v1, GRN only in v2) and these arguments of `ConvNeXt`."""
    from convnext_deploy.models.convnext import ConvNeXt

    row = complete_spec(spec)
    return ConvNeXt(
        row.depths,
        row.dims,
        hidden_widths=row.hidden_widths,
        num_classes=spec.num_classes,
        in_channels=spec.in_channels,
        patch_size=spec.patch_size,
        stem=row.stem,
        stem_dim=row.stem_dim,
        kernel_sizes=row.kernel_sizes,
        strides=spec.strides,
        dilations=spec.dilations,
        norm=row.norm,
        norm_eps=row.norm_eps,
        head_norm_eps=spec.head_norm_eps,
        activation=row.activation,
        layer_scale_init=layer_scale_init if row.version == 1 else None,
        use_grn=row.version == 2,
        head_norm_first=row.head_norm_first,
        head_norm=spec.head_norm,
        head_hidden_size=row.head_hidden_size,
        head_activation=spec.head_activation,
        drop_path_rate=drop_path_rate,
        head_input_dropout=head_input_dropout,
        head_dropout=head_dropout,
        feature_map=spec.feature_map,
        gradient_checkpointing=gradient_checkpointing,
    )
