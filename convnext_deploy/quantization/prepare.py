"""Put quantizers into a model, calibrate them, and read them out for export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.errors import DeployError
from convnext_deploy.quantization.fake_quantize import INT32_MAX, FakeQuantize, quantize, round_bias
from convnext_deploy.quantization.observers import (
    MinMaxObserver,
    Observer,
    PercentileObserver,
    choose_qparams,
    weight_qparams,
)
from convnext_deploy.quantization.scheme import QuantizationScheme

Model = TypeVar("Model", bound=nn.Module)


class QuantizedLinear(nn.Linear):
    """A linear layer with quantizers at its input, its weight and, where there is one, its output. For its bias, see `_bias`."""

    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize
    output_quantizer: FakeQuantize | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Linear's)
        """Map `(..., in_features)` to `(..., out_features)`."""
        output: Tensor = F.linear(self.input_quantizer(input), self.weight_quantizer(self.weight), _bias(self))
        return output if self.output_quantizer is None else self.output_quantizer(output)


class QuantizedConv2d(nn.Conv2d):
    """A convolution with quantizers at its input, its weight and, where there is one, its output. For its bias, see `_bias`."""

    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize
    output_quantizer: FakeQuantize | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Conv2d's)
        """Map `(N, C, H, W)` to `(N, C', H', W')`."""
        output = self._conv_forward(self.input_quantizer(input), self.weight_quantizer(self.weight), _bias(self))
        return output if self.output_quantizer is None else self.output_quantizer(output)  # type: ignore[no-any-return]


def _bias(layer: QuantizedLinear | QuantizedConv2d) -> Tensor | None:
    """Return the bias that a layer computes with.

    It stays in float where the output does. Where the output is quantized, runtimes add it to the integer sums, as int32: ONNX
    Runtime rounds it whatever the file says. That moves one output in some thousand by a step, and every one of those moves others
    further on, so that after ten layers the results have little in common; so it is rounded here as well.
    """
    if layer.output_quantizer is None or layer.bias is None:
        return layer.bias
    quantizers = (layer.input_quantizer, layer.weight_quantizer, layer.output_quantizer)
    if not all(quantizer.enabled and quantizer.observer is None for quantizer in quantizers):
        return layer.bias
    return round_bias(layer.bias, layer.input_quantizer.scale, layer.weight_quantizer.scale)


QuantizedLayer = QuantizedLinear | QuantizedConv2d
_REPLACEMENTS: dict[type[nn.Module], type[QuantizedLayer]] = {nn.Linear: QuantizedLinear, nn.Conv2d: QuantizedConv2d}


def prepare(model: Model, scheme: QuantizationScheme) -> Model:
    """Give every site of the scheme its quantizers, in place, and return the model. Parameters keep their names.

    Raises: RecipeError: if the scheme leaves every layer in float, or an override matches no layer; the model is then unchanged.
    """
    layers = {name: module for name, module in model.named_modules() if type(module) in _REPLACEMENTS}
    for name, grids in scheme.select(layers).items():
        layer = layers[name]
        # The class changes and nothing else, so weights, hooks and sharing stay as they are.
        layer.__class__ = _REPLACEMENTS[type(layer)]
        layer.input_quantizer = FakeQuantize(grids.input, None)
        layer.weight_quantizer = FakeQuantize(grids.weight, layer.weight.shape[0] if grids.weight.per_channel else None)
        layer.output_quantizer = None if grids.output is None else FakeQuantize(grids.output, None)
        layer.to(layer.weight.device)
    return model


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yield the name and layer of every site."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedConv2d):
            yield name, module


def activation_quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Return the quantizers of all inputs and outputs, under the words that messages use: `input of 'stages.0.0.pwconv1'`."""
    found: dict[str, FakeQuantize] = {}
    for name, layer in quantized_layers(model):
        found[f"input of '{name}'"] = layer.input_quantizer
        if layer.output_quantizer is not None:
            found[f"output of '{name}'"] = layer.output_quantizer
    return found


def observer_factory(method: str, percentile: float) -> Callable[[], Observer]:
    """Return what makes an observer: `minmax` or `percentile`."""
    return MinMaxObserver if method == "minmax" else lambda: PercentileObserver(percentile)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor], create_observer: Callable[[], Observer]) -> None:
    """Run `batches` through the float model once and fix every grid: activations as observed, weights at their extremes.

    Args:
        model: prepared; in evaluation mode.
        batches: normalized images `(N, C, H, W)` on the model's device.
        create_observer: called once per quantized activation.

    Raises: DeployError: if there is no batch, or a site sees values that are not finite.
    """
    quantizers = activation_quantizers(model)
    for quantizer in quantizers.values():
        quantizer.observer = create_observer()
    seen = 0
    with quantizers_disabled(model):
        for images in batches:
            model(images)
            seen += len(images)
    if seen == 0:
        raise DeployError("there are no calibration images; at least one is needed.")
    for place, quantizer in quantizers.items():
        assert quantizer.observer is not None  # set above
        low, high = quantizer.observer.value_range()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DeployError(f"the {place} is not finite on the calibration images ({low} to {high}).")
        device = quantizer.zero_point.device
        limits = torch.tensor(low, device=device), torch.tensor(high, device=device)
        quantizer.freeze(*choose_qparams(*limits, quantizer.scheme))
        quantizer.observer = None
    for _, layer in quantized_layers(model):
        freeze_weight(layer, *weight_qparams(layer.weight, layer.weight_quantizer.scheme))


@torch.no_grad()
def freeze_weight(layer: QuantizedLayer, scale: Tensor, zero_point: Tensor) -> None:
    """Fix the grid of a layer's weight, after that of its input: wide enough for the bias where that is held in int32.

    A dead channel has so small a scale that its bias would take more than 32 bits, and be cut off.
    """
    if layer.output_quantizer is not None and layer.bias is not None:
        least = layer.bias.abs() / (INT32_MAX * layer.input_quantizer.scale)
        scale = torch.maximum(scale, least if scale.ndim else least.max())
    layer.weight_quantizer.freeze(scale, zero_point)


@contextmanager
def quantizers_disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes in float, exactly as before `prepare`."""
    quantizers = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    before = [quantizer.enabled for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer, enabled in zip(quantizers, before, strict=True):
            quantizer.enabled = enabled


def without_quantizers(model: Model) -> Model:
    """Return a float copy of a prepared model: the same parameters, no quantizers."""
    model = copy.deepcopy(model)
    originals = {quantized: plain for plain, quantized in _REPLACEMENTS.items()}
    for _, layer in list(quantized_layers(model)):
        del layer.input_quantizer, layer.weight_quantizer, layer.output_quantizer
        layer.__class__ = originals[type(layer)]  # type: ignore[assignment]  # the reverse of prepare
    return model


@dataclass(frozen=True)
class ActivationGrid:
    """The grid of an input or output in numbers: float32 scale and, in the type of the integers, zero point; both `()`."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int8] | NDArray[np.uint8]


@dataclass(frozen=True)
class QuantizedSite:
    """A calibrated layer in numbers, for exporters.

    `weight` is int8 in the layer's own layout, `(out, in)` or `(out, in, h, w)`; `weight_scale` is `(out,)` or `()` float32, the
    zero point 0; `output` None: the layer's output stays in float; `bias` `(out,)` float32, None where it is the layer's own.
    """

    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    input: ActivationGrid
    output: ActivationGrid | None = None
    bias: NDArray[np.float32] | None = None


@torch.no_grad()
def read_sites(model: nn.Module) -> dict[str, QuantizedSite]:
    """Return the integers and scales of every site by layer name: the very numbers that the fake quantizers compute with."""
    sites: dict[str, QuantizedSite] = {}
    for name, layer in quantized_layers(model):
        weight = layer.weight_quantizer
        scale, zero_point = weight.qparams()
        integers = quantize(layer.weight, scale, zero_point, weight.scheme)
        bias = _bias(layer)
        sites[name] = QuantizedSite(
            integers.cpu().numpy().astype(np.int8),
            scale.cpu().numpy(),
            _read_grid(layer.input_quantizer),
            None if layer.output_quantizer is None else _read_grid(layer.output_quantizer),
            None if bias is None or bias is layer.bias else bias.cpu().numpy(),
        )
    return sites


def _read_grid(quantizer: FakeQuantize) -> ActivationGrid:
    scale, zero_point = quantizer.qparams()
    return ActivationGrid(scale.cpu().numpy(), zero_point.cpu().numpy().astype(quantizer.scheme.dtype))
