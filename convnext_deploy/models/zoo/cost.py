"""Count parameters, multiply-accumulates and training memory of a network from its row of the table, without building it.

The formulas follow `convnext.py` layer by layer; the tests compare them with the networks built from the same rows.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.variants import Four, Variant, complete_spec, feature_width

_STEM_KERNEL = 3  # of both convolutions of an overlapping stem
_DOWNSAMPLE_KERNEL = 2


@dataclass(frozen=True)
class _Convolution:
    """A convolution that turns `in_channels` into `channels` on a map of `side` x `side` pixels."""

    in_channels: int
    channels: int
    kernel_size: int
    side: int

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return (self.in_channels * self.kernel_size**2 + 1) * self.channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image; taps that fall on the zero padding count like the others."""
        return self.in_channels * self.kernel_size**2 * self.channels * self.side**2

    @property
    def values(self) -> int:
        """Values of the output per image."""
        return self.channels * self.side**2


def count_parameters(spec: ModelSpec) -> int:
    """Return the number of trainable values of a network, its head for `spec.num_classes` logits included."""
    row = complete_spec(spec)
    stem = _stem(spec, row, 0)
    downsampling = _downsampling(spec, row, (0, 0, 0, 0))
    # the norm behind the stem, those before each downsampling, and the last one
    norms = sum(_norm_parameters(row, dim) for dim in (row.dims[0], *row.dims, *row.dims[: spec.strides[0] - 1]))
    norms += 2 * row.dims[-1] * spec.head_norm
    blocks = sum(
        _block_parameters(row, dim, kernel, hidden)
        for widths, dim, kernel in zip(row.block_widths, row.dims, row.kernel_sizes, strict=True)
        for hidden in widths
        if hidden
    )
    head = sum((inputs + 1) * outputs for inputs, outputs in _head(spec, row))
    return sum(layer.parameters for layer in (*stem, *downsampling)) + norms + blocks + head


def count_macs(spec: ModelSpec, image_size: int) -> int:
    """Return the multiply-accumulates of all convolutions and linear layers for one image `(C, image_size, image_size)`.

    Norms, activations, GRN, LayerScale, residual additions and the pooling are not counted: they multiply no matrices. The
    papers' "FLOPs" are these multiply-accumulates, half of what counts a multiplication and an addition as two.

    Raises: RecipeError: if the image is smaller than one pixel of the last feature map.
    """
    row = complete_spec(spec)
    sides = feature_map_sides(spec, image_size)
    convolutions = sum(layer.macs for layer in (*_stem(spec, row, image_size), *_downsampling(spec, row, sides)))
    blocks = sum(
        (kernel**2 * dim + 2 * hidden * dim) * side**2
        for widths, dim, kernel, side in zip(row.block_widths, row.dims, row.kernel_sizes, sides, strict=True)
        for hidden in widths
        if hidden
    )
    return convolutions + blocks + sum(inputs * outputs for inputs, outputs in _head(spec, row))


def activation_bytes(
    spec: ModelSpec, image_size: int, bytes_per_value: float, *, gradient_checkpointing: bool = False
) -> int:
    """Return the memory that the forward pass of training keeps for the backward pass, in bytes per image.

    Counted is every tensor that grows with the number of pixels, except the mean and deviation of norms (two values per pixel
    where a block keeps more than 300). Not counted are copies of weights, the batch's logits, and what the backward pass
    itself needs for a moment. With `gradient_checkpointing` blocks keep their input only; the insides of the largest block
    are added, since they exist again while its gradient is computed.

    Args:
        spec: the network.
        image_size: side of the input in pixels.
        bytes_per_value: 4 in float32; less on average under autocast.
        gradient_checkpointing: as in `FitConfig`.

    Raises: RecipeError: if the image is smaller than one pixel of the last feature map.
    """
    row = complete_spec(spec)
    sides = feature_map_sides(spec, image_size)
    stem = _stem(spec, row, image_size)
    # Every convolution keeps its input: the image, or between two convolutions of a stem the output of the first. An
    # activation between them keeps its own input as well. The norm behind the last one keeps that one's output.
    values = spec.in_channels * image_size**2 + sum(layer.values for layer in stem)
    values += stem[0].values if row.stem == "overlap_act" else 0
    values += _norm_values(row) * stem[-1].values
    # Downsampling keeps the input of its norm and of its convolution; its output is the input of the next block.
    values += sum((2 + _norm_values(row)) * dim * side**2 for dim, side in zip(row.dims[:-1], sides[:-1], strict=True))
    if spec.strides[0] > 1:  # the stem's norm keeps its output for the norm before this downsampling
        values += (2 + _norm_values(row)) * stem[-1].values
    if row.head_norm_first:
        values += (1 + _norm_values(row)) * row.dims[-1] * sides[-1] ** 2
    blocks = [
        (_block_values(row, dim, hidden) * side**2, dim * side**2)
        for widths, dim, side in zip(row.block_widths, row.dims, sides, strict=True)
        for hidden in widths
        if hidden
    ]
    values += sum(own for _, own in blocks)
    values += (max if gradient_checkpointing else sum)(inside for inside, _ in blocks)
    return round(values * bytes_per_value)


def feature_map_sides(spec: ModelSpec, image_size: int) -> Four:
    """Return the sides in pixels of the feature maps of the four model stages.

    Raises: RecipeError: if nothing is left of the last one.
    """
    row = complete_spec(spec)
    side = image_size // spec.patch_size if row.stem == "patch" else _overlap_side(_overlap_side(image_size))
    sides = cast(Four, tuple(side // math.prod(spec.strides[: stage + 1]) for stage in range(4)))
    if sides[-1] < 1:
        least = spec.output_stride if row.stem == "patch" else 29  # two overlapping convolutions round 29 / 4 up to 8
        raise RecipeError(f"image_size = {image_size} is too small for {spec.variant}; expected >= {least} pixels.")
    return sides


def describe_features(spec: ModelSpec, image_size: ImageSize) -> str:
    """Return the shape of what a feature extractor gives, such as `(N, 768)`."""
    numbers = feature_width(spec)
    if spec.output == "features":
        return f"(N, {numbers})"
    height, width = (feature_map_sides(spec, side)[-1] for side in sides_of(image_size))
    return f"(N, {numbers}, {height}, {width})"


def _overlap_side(side: int) -> int:
    """Side after a 3x3 convolution with stride 2 and padding 1."""
    return (side + 1) // 2


def _stem(spec: ModelSpec, row: Variant, image_size: int) -> tuple[_Convolution, ...]:
    if row.stem == "patch":
        return (_Convolution(spec.in_channels, row.dims[0], spec.patch_size, image_size // spec.patch_size),)
    width, side = row.stem_dim or row.dims[0], _overlap_side(image_size)
    return (
        _Convolution(spec.in_channels, width, _STEM_KERNEL, side),
        _Convolution(width, row.dims[0], _STEM_KERNEL, _overlap_side(side)),
    )


def _downsampling(spec: ModelSpec, row: Variant, sides: Four) -> Iterator[_Convolution]:
    if spec.strides[0] > 1:
        yield _Convolution(row.dims[0], row.dims[0], _DOWNSAMPLE_KERNEL, sides[0])
    for (dim, out_dim), side in zip(itertools.pairwise(row.dims), sides[1:], strict=True):
        yield _Convolution(dim, out_dim, _DOWNSAMPLE_KERNEL, side)


def _head(spec: ModelSpec, row: Variant) -> tuple[tuple[int, int], ...]:
    """Inputs and outputs of the linear layers of the head."""
    widths = [row.dims[-1]]
    if row.head_hidden_size is not None and spec.output != "feature-map":
        widths.append(row.head_hidden_size)
    if spec.num_classes:
        widths.append(spec.num_classes)
    return tuple(itertools.pairwise(widths))


def _norm_parameters(row: Variant, dim: int) -> int:
    return 2 * dim if row.norm == "layernorm" else dim  # the other norms have no bias


def _norm_values(row: Variant) -> int:
    """Copies of its input that a norm keeps besides the input: those without a fused kernel keep the normalized values."""
    return 0 if row.norm == "layernorm" else 1


def _block_parameters(row: Variant, dim: int, kernel_size: int, hidden: int) -> int:
    depthwise = (kernel_size**2 + 1) * dim
    pointwise = (dim + 1) * hidden + (hidden + 1) * dim
    grn, layer_scale = 2 * hidden, dim
    return depthwise + _norm_parameters(row, dim) + pointwise + (grn if row.version == 2 else layer_scale)


def _block_values(row: Variant, dim: int, hidden: int) -> int:
    """Values per pixel that a block keeps besides its input, each as the input of the layer named."""
    norm, first_linear = (1 + _norm_values(row)) * dim, dim
    activation = second_linear = hidden
    grn, layer_scale = hidden, dim
    return norm + first_linear + activation + second_linear + (grn if row.version == 2 else layer_scale)
