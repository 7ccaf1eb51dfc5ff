"""Calibrate a prepared model: choose every scale and zero point from one pass over the images, in constant memory."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.errors import DeployError
from convnext_deploy.quantization.fake_quantize import INT32_MAX, quantize, spread
from convnext_deploy.quantization.observers import RANGE_METHODS, WITHOUT_HISTOGRAM, ActivationObserver
from convnext_deploy.quantization.prepare import QuantizedLayer, channel_dim, quantized_layers, quantizers_disabled
from convnext_deploy.quantization.qparams import choose_qparams, mse_weight_qparams, weight_qparams
from convnext_deploy.quantization.scheme import TensorScheme

AUTO = "auto"
CALIBRATION_METHODS = (AUTO, *RANGE_METHODS)
_SAMPLE_VALUES = 1 << 20  # of each quantized input; 4 MiB, 160 MiB for the 39 of ConvNeXt-Tiny
_LEAST_OF_CHANNEL = 2**-8  # of the largest channel's scale
_PARTS = 16  # a sample is taken from so many batches at least, once there are as many


class InputSample:
    """Some inputs of one layer, evenly from everything seen, in constant memory.

    Rows `(R, C)` of a linear layer, whole images `(N, C, H, W)` of a convolution, whose outputs need neighbours.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        self._is_linear = isinstance(layer, nn.Linear)
        self._parts: list[Tensor] = []
        self._seen, self._step = 0, 1

    def observe(self, x: Tensor) -> None:
        """Take in one batch, of which a share is kept. When there are too many, every other one goes."""
        self._seen += 1
        if (self._seen - 1) % self._step:
            return
        items = x.reshape(-1, x.shape[-1]) if self._is_linear else x
        size = max(1, items[:1].numel())
        count = min(len(items), max(1, _SAMPLE_VALUES // (_PARTS * size)))
        # the places move from batch to batch, so that not always the same pixels are taken
        places = (torch.arange(count, device=x.device) * len(items) // count + 7919 * self._seen) % len(items)
        self._parts.append(items[places].float())
        if len(self._parts) > 2 * _PARTS or sum(part.numel() for part in self._parts) > 2 * _SAMPLE_VALUES:
            self._parts = self._parts[::2]
            self._step *= 2

    def values(self) -> Tensor:
        """Return what was kept, `(R, C)` or `(N, C, H, W)` float32."""
        return torch.cat(self._parts)


class SiteObserver:
    """What calibration sees of one quantized tensor: its range and, of an input, a sample."""

    def __init__(self, layer: QuantizedLayer, clock: Iterator[int], *, sample: bool, histogram: bool) -> None:
        self._clock, self.turn = clock, -1  # which of all sites it was to see something first
        self.range = ActivationObserver(channel_dim(layer), histogram=histogram)
        self.sample = InputSample(layer) if sample else None

    def observe(self, x: Tensor) -> None:
        """Take in one batch."""
        self.turn = next(self._clock) if self.turn < 0 else self.turn
        self.range.observe(x)
        if self.sample is not None:
            self.sample.observe(x)


@torch.no_grad()
def observe(
    model: nn.Module, batches: Iterable[Tensor], *, samples: bool = True, histograms: bool = True
) -> tuple[dict[str, SiteObserver], dict[str, SiteObserver]]:
    """Run images through the float model and return what was seen at the inputs and at the outputs, by layer name.

    Args:
        model: prepared; in evaluation mode.
        batches: normalized images `(N, C, H, W)` on the model's device.
        samples: whether to keep samples of the inputs.
        histograms: whether to count values, which all range methods but `minmax` and `moving_average` need.

    Raises: DeployError: if there is no image, or a value is not finite.
    """
    inputs: dict[str, SiteObserver] = {}
    outputs: dict[str, SiteObserver] = {}
    clock = itertools.count()
    for name, layer in quantized_layers(model):
        layer.input_quantizer.observer = inputs[name] = SiteObserver(layer, clock, sample=samples, histogram=histograms)
        if layer.output_quantizer is not None:
            layer.output_quantizer.observer = outputs[name] = SiteObserver(
                layer, clock, sample=False, histogram=histograms
            )
    seen = 0
    try:
        with quantizers_disabled(model):
            for images in batches:
                model(images)
                seen += len(images)
    finally:
        for _, layer in quantized_layers(model):
            layer.input_quantizer.observer = None
            if layer.output_quantizer is not None:
                layer.output_quantizer.observer = None
    if seen == 0:
        raise DeployError("there are no calibration images; at least one is needed.")
    sides = (("input", inputs), ("output", outputs))
    sites = [(observer, side, name) for side, observers in sides for name, observer in observers.items()]
    for observer, side, name in sorted(sites, key=lambda site: site[0].turn):  # it goes on from the first to all others
        low, high = observer.range.channel_minimum.min().item(), observer.range.channel_maximum.max().item()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DeployError(f"the {side} of '{name}' is not finite on the calibration images ({low} to {high}).")
    return inputs, outputs


def calibrate(model: nn.Module, batches: Iterable[Tensor], method: str = AUTO, percentile: float = 99.99) -> None:
    """Run images through the float model once and fix every grid.

    `auto` takes, for every input, the range of `RANGE_METHODS` with the least squared error of the layer's output on a sample of
    inputs, and for every output the one with the least squared error; weights get the scale with the least squared error, which
    with any other method is the one that covers their extremes. Outputs with a scale per channel have it from their extremes.

    Args:
        model: prepared; in evaluation mode.
        batches: normalized images `(N, C, H, W)` on the model's device.
        method: in `CALIBRATION_METHODS`.
        percentile: of `percentile`, and of that candidate of `auto`; in (50, 100].

    Raises: DeployError: if there is no image, or a site sees values that are not finite.
    """
    counts = method not in WITHOUT_HISTOGRAM
    inputs, outputs = observe(model, batches, samples=method == AUTO, histograms=counts)
    fix_grids(model, inputs, outputs, method, percentile)


@torch.no_grad()
def fix_grids(
    model: nn.Module,
    inputs: dict[str, SiteObserver],
    outputs: dict[str, SiteObserver],
    method: str = AUTO,
    percentile: float = 99.99,
) -> None:
    """Fix every grid from what `observe` returned, by a method of `calibrate`."""
    for name, layer in quantized_layers(model):
        if layer.output_quantizer is not None:
            way = "mse" if method == AUTO else method
            layer.output_quantizer.freeze(*_qparams(outputs[name], layer.output_quantizer.scheme, way, percentile))
        scheme = layer.weight_quantizer.scheme
        scale, zero_point = (mse_weight_qparams if method == AUTO else weight_qparams)(layer.weight, scheme)
        if method == AUTO:
            rounded = dequantized(layer.weight, scale, zero_point, scheme)
            layer.input_quantizer.freeze(*best_input_grid(layer, inputs[name], layer.weight, rounded, percentile)[:2])
        else:
            layer.input_quantizer.freeze(*_qparams(inputs[name], layer.input_quantizer.scheme, method, percentile))
        freeze_weight(layer, scale, zero_point)


def _qparams(seen: SiteObserver, scheme: TensorScheme, method: str, percentile: float) -> tuple[Tensor, Tensor]:
    if scheme.per_channel:  # a channel of its own has no outliers of others to leave out
        scale, zero_point = choose_qparams(seen.range.channel_minimum, seen.range.channel_maximum, scheme)
        # a channel that was silent on these images may speak on others
        return scale.clamp(min=scale.max() * _LEAST_OF_CHANNEL), zero_point
    low, high = seen.range.value_range(method, scheme, percentile)
    return choose_qparams(torch.tensor(low), torch.tensor(high), scheme)


def best_input_grid(
    layer: QuantizedLayer, seen: SiteObserver, weight: Tensor, rounded: Tensor, percentile: float = 99.99
) -> tuple[Tensor, Tensor, float]:
    """Return scale and zero point of the input's grid that changes the layer's output least, and the squared error that is left.

    Args:
        layer: whose input it is.
        seen: the input, with a sample.
        weight: in float, in the layer's layout.
        rounded: the same on its grid.
        percentile: of that candidate.
    """
    assert seen.sample is not None
    scheme, x = layer.input_quantizer.scheme, seen.sample.values()
    expected = linear_map(layer, x, weight)
    best: tuple[Tensor, Tensor, float] | None = None
    for low, high in dict.fromkeys(seen.range.value_range(method, scheme, percentile) for method in RANGE_METHODS):
        scale, zero_point = choose_qparams(torch.tensor(low), torch.tensor(high), scheme)
        scale, zero_point = scale.to(x.device), zero_point.to(x.device)
        found = linear_map(layer, dequantized(x, scale, zero_point, scheme), rounded)
        error = (found - expected).square_().sum().item()
        if best is None or error < best[2]:
            best = scale, zero_point, error
    assert best is not None  # there are methods
    return best


def dequantized(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: TensorScheme) -> Tensor:
    """Return `x` on the grid, without gradients."""
    return quantize(x, scale, zero_point, scheme).sub_(spread(zero_point, x)).mul_(spread(scale, x))


def linear_map(layer: QuantizedLayer, x: Tensor, weight: Tensor) -> Tensor:
    """Return the layer's output for another weight, without its bias: `(R, out)` or `(N, out, H', W')`."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


@torch.no_grad()
def freeze_weight(layer: QuantizedLayer, scale: Tensor, zero_point: Tensor) -> None:
    """Fix the grid of a layer's weight, after that of its input: wide enough for the bias where that is held in int32.

    A dead channel has so small a scale that its bias would take more than 32 bits, and be cut off.
    """
    if layer.output_quantizer is not None and layer.bias is not None:
        least = layer.bias.abs() / (INT32_MAX * layer.input_quantizer.scale)
        scale = torch.maximum(scale, least if scale.ndim else least.max())
    layer.weight_quantizer.freeze(scale, zero_point)
