"""Calibrate a prepared model: choose every scale and zero point from one pass over the images, in constant memory."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_deploy.quantization.fake_quantize import INT32_MAX, quantize, spread
from convnext_deploy.quantization.observers import RANGE_METHODS, WITHOUT_HISTOGRAM
from convnext_deploy.quantization.prepare import QuantizedLayer, quantized_layers
from convnext_deploy.quantization.qparams import choose_qparams, mse_weight_qparams, weight_qparams
from convnext_deploy.quantization.scheme import TensorScheme
from convnext_deploy.quantization.seen import SiteObserver, observe

AUTO = "auto"
_LEAST_OF_CHANNEL = 2**-8  # of the largest channel's scale


def calibrate(model: nn.Module, batches: Iterable[Tensor], method: str = AUTO, percentile: float = 99.99) -> None:
    """Run images through the float model once and fix every grid.

    `auto` takes, for every input, the range of `RANGE_METHODS` with the least squared error of the layer's output on a sample of
    inputs, and for every output the one with the least squared error; weights get the scale with the least squared error, which
    with any other method is the one that covers their extremes. Outputs with a scale per channel have it from their extremes.

    Args:
        model: prepared; in evaluation mode.
        batches: normalized images `(N, C, H, W)` on the model's device.
        method: `auto`, or one of `RANGE_METHODS`.
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
