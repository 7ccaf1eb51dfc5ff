"""A ConvNeXt in plain NumPy that multiplies integers, written from the definitions: nothing of PyTorch or ONNX computes here.

A quantized layer turns its input into integers, sums integer products in int64, and turns the sums into reals with the product of
the scales; where its output is quantized, the bias is an integer too and sums become integers of the output. All else is float64.
Numbers of FP8 E4M3 are integers as well, counted in its smallest number, 2^-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.prepare import ActivationGrid, QuantizedSite

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
PER_UNIT = 512  # smallest numbers of FP8 in 1
_erf = np.vectorize(math.erf, otypes=[np.float64])


def is_fp8(numbers: NDArray[Any]) -> bool:
    return numbers.dtype.name == "float8_e4m3fn"


def _steps_of_fp8(levels: Array) -> tuple[Array, Array]:
    """Return the exponents of numbers of FP8, at least -6, and the distance to the next: three bits follow the leading one."""
    exponents = np.maximum(np.floor(np.log2(np.maximum(np.abs(levels), 2.0**-9))), -6)
    return exponents, 2.0 ** (exponents - 3)


def to_codes(levels: NDArray[Any], like: NDArray[Any]) -> Integers:
    """Return the place of each level among all of them, so that neighbours are 1 apart, and that of 0 is 0.

    Args:
        levels: in any type.
        like: of the type that holds them.
    """
    if not is_fp8(like):
        return levels.astype(np.int64)
    values = levels.astype(np.float64)
    exponents, steps = _steps_of_fp8(values)
    found: Integers = (np.sign(values) * (8 * (exponents + 6) + np.abs(values) / steps)).astype(np.int64)
    return found


def from_codes(codes: Integers) -> Array:
    """Return the numbers of FP8 whose places `to_codes` returns."""
    magnitudes = np.abs(codes)
    exponents = np.maximum(magnitudes // 8 - 7, -6)
    values: Array = np.sign(codes) * (magnitudes - 8 * (exponents + 6)) * 2.0 ** (exponents - 3)
    return values


def even_places(codes: Integers, start: float) -> Array:
    """Return places of FP8 codes of `to_codes` as they would be if the numbers below `start` were as far apart as those at it.

    Nearer to zero the codes lie closer together, so that a difference which is one step at `start` is many there.
    """
    values, least = from_codes(codes), _steps_of_fp8(np.asarray(start))[0]
    exponents = np.maximum(_steps_of_fp8(values)[0], least)
    places: Array = np.sign(values) * (8 * (exponents - least) + np.abs(values) / 2.0 ** (exponents - 3))
    return places


def to_integers(x: Array, grid: ActivationGrid) -> Integers:
    """Return `x` on its grid, per tensor or, with scales `(C,)`, per last dimension; halves go to even."""
    if grid.shift is not None:
        x = x + float(grid.shift)
    if is_fp8(grid.zero_point):
        values = x / grid.scale.astype(np.float64)
        _, sizes = _steps_of_fp8(values)
        levels: Array = np.clip(np.rint(values / sizes) * sizes, -448, 448)
        return (levels * PER_UNIT).astype(np.int64)
    ends = np.iinfo(grid.zero_point.dtype)
    steps = np.rint(x / grid.scale.astype(np.float64)) + grid.zero_point.astype(np.int64)
    found: Integers = np.clip(steps, ends.min, ends.max).astype(np.int64)
    return found


@dataclass
class IntegerNetwork:
    """The reference for one network of the plain kind: patch stem, LayerNorm, GELU, one linear layer as head.

    Args:
        network: the float network that was quantized; only its numbers are read.
        sites: what quantization fixed.

    Attributes:
        seen: `layer.input` or `layer.output` → the codes there in the last `run`, as of `to_codes`, channels last.
    """

    network: ConvNeXt
    sites: dict[str, QuantizedSite]
    seen: dict[str, Integers] = field(default_factory=dict)

    def run(self, images: NDArray[np.float32]) -> Array:
        """Return the logits `(N, classes)` of images `(N, C, H, W)`."""
        x = np.moveaxis(images.astype(np.float64), 1, -1)
        for stage in range(4):
            x = self.downsample(x, stage)
            for block in range(len(self.network.stages[stage])):  # type: ignore[arg-type]  # a Sequential
                x = self.block(x, f"stages.{stage}.{block}")
        return self.linear(self.norm(x.mean(axis=(1, 2)), "norm"), "head")

    def number(self, name: str) -> Array:
        """Return a parameter in float64."""
        return self.network.get_parameter(name).detach().double().numpy()

    def downsample(self, x: Array, stage: int) -> Array:
        """Return the stem's output, or that of the downsampling layer before a stage."""
        if stage == 0:
            patch = int(self.network.get_parameter("downsample_layers.0.0.weight").shape[-1])
            return self.norm(self.convolution(x, "downsample_layers.0.0", stride=patch), "downsample_layers.0.1")
        normed = self.norm(x, f"downsample_layers.{stage}.0")
        return self.convolution(normed, f"downsample_layers.{stage}.1", stride=2)

    def block(self, x: Array, name: str) -> Array:
        """Return what a block gives."""
        y = self.convolution(x, f"{name}.dwconv", stride=1)
        y = self.linear(self.norm(y, f"{name}.norm"), f"{name}.pwconv1")
        y = 0.5 * y * (1 + _erf(y / math.sqrt(2)))
        names = dict(self.network.named_parameters())
        if f"{name}.grn.gamma" in names:
            size = np.sqrt((y * y).sum(axis=(1, 2), keepdims=True))
            share = size / (size.mean(axis=-1, keepdims=True) + 1e-6)
            gain = self.number(f"{name}.grn.gain").ravel() if f"{name}.grn.gain" in names else 1.0
            y = y * (gain + self.number(f"{name}.grn.gamma").ravel() * share) + self.number(f"{name}.grn.beta").ravel()
        y = self.linear(y, f"{name}.pwconv2")
        return x + (self.number(f"{name}.gamma") * y if f"{name}.gamma" in names else y)

    def norm(self, x: Array, name: str) -> Array:
        """Return the LayerNorm over the last dimension."""
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-6)
        found: Array = scaled * self.number(f"{name}.weight") + self.number(f"{name}.bias")
        return found

    def linear(self, x: Array, name: str) -> Array:
        """Return a linear layer's output, `(..., C)` to `(..., C')`."""
        if name in self.sites:
            return self.product(x, name, lambda rows, weight: rows @ weight.T)
        return x @ self.number(f"{name}.weight").T + self.number(f"{name}.bias")

    def convolution(self, x: Array, name: str, stride: int) -> Array:
        """Return a convolution's output; its padding is what keeps the size at stride 1, and none otherwise."""
        kernel = int(self.network.get_parameter(f"{name}.weight").shape[-1])
        around = (kernel // 2,) * 2 if stride == 1 else (0, 0)

        def windows(rows: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
            # an input that is quantized has its zero point taken off already, so that zeros stand for zero
            padded = np.pad(rows, ((0, 0), around, around, (0, 0)))
            views = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
            if weight.shape[1] == 1:
                sums: NDArray[Any] = np.einsum("nhwcij,cij->nhwc", views, weight[:, 0], optimize=True)
                return sums
            flat = views.reshape(*views.shape[:3], -1)
            products: NDArray[Any] = flat @ weight.reshape(len(weight), -1).T
            return products

        if name in self.sites:
            return self.product(x, name, windows)
        return windows(x, self.number(f"{name}.weight")) + self.number(f"{name}.bias")

    def product(self, x: Array, name: str, multiply: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]) -> Array:
        """Return a quantized layer's output, reals again, and keep its integers."""
        site = self.sites[name]
        integers = to_integers(x, site.input)
        step = site.input.scale.astype(np.float64) * site.weight_scale
        if is_fp8(site.weight):
            self.seen[f"{name}.input"] = to_codes(integers / PER_UNIT, site.weight)
            sums = multiply(integers, (site.weight.astype(np.float64) * PER_UNIT).astype(np.int64))
            step = step / PER_UNIT**2
        else:
            self.seen[f"{name}.input"] = integers
            sums = multiply(integers - int(site.input.zero_point), site.weight.astype(np.int64))
            assert np.abs(sums).max() < 2**31, "the sums of real runtimes are int32"
        bias = self.number(f"{name}.bias") if site.bias is None else site.bias.astype(np.float64)
        if site.output is None:
            reals: Array = sums * step + bias
            return reals
        sums = sums + np.rint(bias / step).astype(np.int64)
        scale = site.output.scale.astype(np.float64)
        out = np.rint(sums * (step / scale)) + site.output.zero_point.astype(np.int64)
        ends = np.iinfo(site.output.zero_point.dtype)
        seen = self.seen[f"{name}.output"] = np.clip(out, ends.min, ends.max).astype(np.int64)
        rounded: Array = (seen - site.output.zero_point.astype(np.int64)) * scale
        return rounded
