"""Put quantizers into a model, take them out again, and read their integers and scales for export."""

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.errors import RecipeError
from convnext_deploy.quantization.fake_quantize import FakeQuantize, quantize, round_bias, spread
from convnext_deploy.quantization.scheme import QuantizationScheme

Model = TypeVar("Model", bound=nn.Module)


class QuantizedLinear(nn.Linear):
    """A linear layer with quantizers at its input, its weight and, where there is one, its output."""

    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize
    output_quantizer: FakeQuantize | None
    input_shift: bool
    patches: bool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Linear's)
        """Map `(..., in_features)` to `(..., out_features)`."""
        with _in_float32(input):
            output: Tensor = F.linear(
                self.input_quantizer(_wide(input)), self.weight_quantizer(self.weight), _bias(self)
            )
            return output if self.output_quantizer is None else self.output_quantizer(output)


class QuantizedConv2d(nn.Conv2d):
    """A convolution with quantizers at its input, its weight and, where there is one, its output."""

    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize
    output_quantizer: FakeQuantize | None
    input_shift: bool
    patches: bool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.Conv2d's)
        """Map `(N, C, H, W)` to `(N, C', H', W')`."""
        with _in_float32(input):
            x = self.input_quantizer(_wide(input))
            output = self._conv_forward(x, self.weight_quantizer(self.weight), _bias(self))
            return output if self.output_quantizer is None else self.output_quantizer(output)  # type: ignore[no-any-return]


def _wide(x: Tensor) -> Tensor:
    """Return activations in float32 where autocast made them half as wide."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Return a block without autocast, where there is one.

    What a quantizer gives lies on a grid of 256 levels, of which bfloat16 holds the levels and not their products with a scale: it
    would move a value by up to half a step, and training would learn another network than the one that runs.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


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
    layers = _layers(model)
    chosen = scheme.select(layers)
    for name, grids in chosen.items():
        if grids.input_shift and is_padded(layers[name]):
            raise RecipeError(
                f"sites: '{name}' pads its input with zeros, which a shifted input would no longer be; choose 'int8' for it."
            )
    for name, grids in chosen.items():
        layer = layers[name]
        # The class changes and nothing else, so weights, hooks and sharing stay as they are.
        layer.__class__ = _REPLACEMENTS[type(layer)]
        layer.input_quantizer = FakeQuantize(grids.input, None)
        layer.weight_quantizer = FakeQuantize(grids.weight, layer.weight.shape[0] if grids.weight.per_channel else None)
        layer.output_quantizer = None
        layer.patches = grids.patches and _cuts_patches(layer)
        if grids.output is not None and not layer.patches:
            channels = layer.weight.shape[0] if grids.output.per_channel else None
            layer.output_quantizer = FakeQuantize(grids.output, channels, channel_dim(layer))
        layer.input_shift = grids.input_shift
        layer.to(layer.weight.device)
    return model


def fit_scheme(scheme: QuantizationScheme, model: nn.Module) -> QuantizationScheme:
    """Return a scheme that a network can have: a padded convolution whose input it shifts is `int8`, unless that was asked for.

    The zeros beyond the border would no longer be zeros after a shift; timm's dilated networks pad where others do not.
    """
    padded = [name for name, layer in _layers(model).items() if is_padded(layer)]
    shifted = [name for name in padded if scheme.choice(name) == scheme.usual_choice(name) == "int8-zero-point-shift"]
    return scheme.with_overrides({**dict(scheme.overrides), **dict.fromkeys(shifted, "int8")}) if shifted else scheme


def _layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if type(module) in _REPLACEMENTS}


def is_padded(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that sees zeros beyond the border of its input."""
    return isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), "valid")


def _cuts_patches(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that reads every pixel once, all channels of it, and no padding."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == layer.stride
        and not any(layer.padding)
        and layer.groups == 1
        and layer.dilation == (1, 1)
    )


def channel_dim(layer: nn.Module) -> int:
    """Return which dimension of a layer's inputs and outputs has the channels: the last of a linear layer's."""
    return -1 if isinstance(layer, nn.Linear) else 1


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yield the name and layer of every site."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedConv2d):
            yield name, module


_NUMPY_TYPES: Mapping[str, Any] = {"int8": np.int8, "uint8": np.uint8, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}
Floats = Mapping[str, Collection[tuple[nn.Module, nn.Module]]]
"""Layer name → modules of a prepared model, each with the float one whose parameters it has where the layer is in float."""


@contextmanager
def quantizers_disabled(model: nn.Module, but: Collection[str] = (), floats: Floats | None = None) -> Iterator[None]:
    """Within the block the model computes in float, but for the layers with these names.

    Without `floats` the other layers keep their weights and biases, which rounding and correction may have changed.
    """
    before = {}
    parameters: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []
    for name, layer in quantized_layers(model):
        for quantizer in layer.children():
            if isinstance(quantizer, FakeQuantize):
                before[quantizer] = quantizer.enabled
                quantizer.enabled = name in but
        for module, source in () if name in but else (floats or {}).get(name, ()):
            parameters.append((module, dict(module.named_parameters(recurse=False))))
            take_parameters(module, source)
    try:
        yield
    finally:
        for quantizer, enabled in before.items():
            quantizer.enabled = enabled
        for module, own in parameters:
            for key, parameter in own.items():
                setattr(module, key, parameter)


def take_parameters(module: nn.Module, source: nn.Module) -> None:
    """Give a module the very parameters of another one, without those of what is inside it. It then shares them."""
    for key in [key for key, _ in module.named_parameters(recurse=False)]:
        setattr(module, key, getattr(source, key))


def without_quantizers(model: Model) -> Model:
    """Return a float copy of a prepared model: the same parameters, no quantizers."""
    model = copy.deepcopy(model)
    originals = {quantized: plain for plain, quantized in _REPLACEMENTS.items()}
    for _, layer in list(quantized_layers(model)):
        del layer.input_quantizer, layer.weight_quantizer, layer.output_quantizer, layer.input_shift, layer.patches
        layer.__class__ = originals[type(layer)]  # type: ignore[assignment]  # the reverse of prepare
    return model


@dataclass(frozen=True)
class ActivationGrid:
    """The grid of an input or output in numbers: float32 scale and, in the type of the levels, zero point.

    Both are `()`, or `(out,)` for an output whose channels have scales of their own; the zero points are all the same then.

    `shift`, `()` float32: what is to be added to the values before they are quantized; None: nothing.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    shift: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class QuantizedSite:
    """A calibrated layer in numbers, for exporters.

    `weight` is int8 or E4M3 in the layer's own layout, `(out, in)` or `(out, in, h, w)`; `weight_scale` is `(out,)` or `()`
    float32, the zero point 0; `output` None: the layer's output stays in float; `bias` `(out,)` float32, None where it is the
    layer's own.
    """

    weight: NDArray[Any]
    weight_scale: NDArray[np.float32]
    input: ActivationGrid
    output: ActivationGrid | None = None
    bias: NDArray[np.float32] | None = None

    @property
    def output_steps(self) -> NDArray[np.float32]:
        """The scales of the output's channels, `(out,)`, by which an exported layer is divided; 1 where there is one for all."""
        steps = np.ones((), np.float32)
        return self.output.scale if self.output is not None and self.output.scale.ndim else steps


@torch.no_grad()
def read_sites(model: nn.Module) -> dict[str, QuantizedSite]:
    """Return the levels and scales of every site by layer name: the very numbers that the fake quantizers compute with.

    A runtime without zero points gets an input shifted by a whole number of steps, `x + scale * zero_point`, so that its symmetric
    integers are those of the asymmetric grid; what the weight makes of the shift is subtracted from the bias, exactly.
    """
    sites: dict[str, QuantizedSite] = {}
    for name, layer in quantized_layers(model):
        weight = layer.weight_quantizer
        scale, zero_point = weight.qparams()
        levels = quantize(layer.weight, scale, zero_point, weight.scheme)
        grid, bias = _read_grid(layer.input_quantizer), _bias(layer)
        if layer.input_shift and grid.zero_point:
            shift = layer.input_quantizer.scale.double() * int(grid.zero_point)
            added = (levels.double() * spread(scale.double(), levels)).flatten(1).sum(1) * shift
            bias = ((0.0 if bias is None else bias.double()) - added).float()
            zero = np.zeros_like(grid.zero_point)
            grid = ActivationGrid(grid.scale, zero, np.array(shift.item(), np.float32))
        sites[name] = QuantizedSite(
            levels.cpu().numpy().astype(_NUMPY_TYPES[weight.scheme.dtype]),
            scale.cpu().numpy(),
            grid,
            None if layer.output_quantizer is None else _read_grid(layer.output_quantizer),
            None if bias is None or bias is layer.bias else bias.cpu().numpy(),
        )
    return sites


def _read_grid(quantizer: FakeQuantize) -> ActivationGrid:
    scale, zero_point = quantizer.qparams()
    return ActivationGrid(scale.cpu().numpy(), zero_point.cpu().numpy().astype(_NUMPY_TYPES[quantizer.scheme.dtype]))
