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

from convnext_deploy.errors import DeployError, RecipeError
from convnext_deploy.quantization.fake_quantize import FakeQuantize, quantize
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
    """A linear layer with quantizers at its input and weight; the bias stays in float."""

    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Linear's)
        """Map `(..., in_features)` to `(..., out_features)`."""
        output: Tensor = F.linear(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)
        return output


class QuantizedConv2d(nn.Conv2d):
    """A convolution with quantizers at its input and weight; the bias stays in float."""

    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Conv2d's)
        """Map `(N, C, H, W)` to `(N, C', H', W')`."""
        output: Tensor = self._conv_forward(self.input_quantizer(input), self.weight_quantizer(self.weight), self.bias)
        return output


QuantizedLayer = QuantizedLinear | QuantizedConv2d
_REPLACEMENTS: dict[type[nn.Module], type[QuantizedLayer]] = {nn.Linear: QuantizedLinear, nn.Conv2d: QuantizedConv2d}


def prepare(model: Model, scheme: QuantizationScheme) -> Model:
    """Give every site of the scheme its quantizers, in place, and return the model. Parameters keep their names.

    Raises: RecipeError: if no layer of the model is a site.
    """
    sites = [(name, m) for name, m in model.named_modules() if type(m) in _REPLACEMENTS and scheme.is_site(name)]
    if not sites:
        raise RecipeError(f"no layer of the model matches the sites of the '{scheme.target}' scheme: {scheme.sites}.")
    for _, layer in sites:
        # The class changes and nothing else, so weights, hooks and sharing stay as they are.
        layer.__class__ = _REPLACEMENTS[type(layer)]
        channels = layer.weight.shape[0] if scheme.weight.per_channel else None
        layer.input_quantizer = FakeQuantize(scheme.activation, None)
        layer.weight_quantizer = FakeQuantize(scheme.weight, channels)
        layer.to(layer.weight.device)
    return model


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yield the name and layer of every site."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedConv2d):
            yield name, module


def observer_factory(method: str, percentile: float) -> Callable[[], Observer]:
    """Return what makes an observer: `minmax` or `percentile`."""
    return MinMaxObserver if method == "minmax" else lambda: PercentileObserver(percentile)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor], create_observer: Callable[[], Observer]) -> None:
    """Run `batches` through the float model once and fix every grid: inputs as observed, weights at their extremes.

    Args:
        model: prepared; in evaluation mode.
        batches: normalized images `(N, C, H, W)` on the model's device.
        create_observer: called once per site.

    Raises: DeployError: if there is no batch, or a site sees values that are not finite.
    """
    layers = dict(quantized_layers(model))
    for layer in layers.values():
        layer.input_quantizer.observer = create_observer()
    seen = 0
    with quantizers_disabled(model):
        for images in batches:
            model(images)
            seen += len(images)
    if seen == 0:
        raise DeployError("there are no calibration images; at least one is needed.")
    for name, layer in layers.items():
        observer = layer.input_quantizer.observer
        assert observer is not None  # set above
        low, high = observer.value_range()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DeployError(f"the input of '{name}' is not finite on the calibration images ({low} to {high}).")
        device = layer.weight.device
        limits = torch.tensor(low, device=device), torch.tensor(high, device=device)
        layer.input_quantizer.freeze(*choose_qparams(*limits, layer.input_quantizer.scheme))
        layer.weight_quantizer.freeze(*weight_qparams(layer.weight, layer.weight_quantizer.scheme))
        layer.input_quantizer.observer = None


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
        del layer.input_quantizer, layer.weight_quantizer
        layer.__class__ = originals[type(layer)]  # type: ignore[assignment]  # the reverse of prepare
    return model


@dataclass(frozen=True)
class QuantizedSite:
    """A calibrated layer in numbers, for exporters.

    `weight` is int8 in the layer's own layout, `(out, in)` or `(out, in, h, w)`; `weight_scale` is `(out,)` or `()` float32;
    `input_scale` float32 and `input_zero_point` int8 are scalars.
    """

    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    input_scale: NDArray[np.float32]
    input_zero_point: NDArray[np.int8]


@torch.no_grad()
def read_sites(model: nn.Module) -> dict[str, QuantizedSite]:
    """Return the integers and scales of every site by layer name: the very numbers that the fake quantizers compute with."""
    sites: dict[str, QuantizedSite] = {}
    for name, layer in quantized_layers(model):
        weight, inputs = layer.weight_quantizer, layer.input_quantizer
        integers = quantize(layer.weight, weight.scale, weight.zero_point, weight.scheme)
        sites[name] = QuantizedSite(
            integers.cpu().numpy().astype(np.int8),
            weight.scale.cpu().numpy(),
            inputs.scale.cpu().numpy(),
            inputs.zero_point.cpu().numpy().astype(np.int8),
        )
    return sites
