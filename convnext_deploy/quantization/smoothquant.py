"""SmoothQuant: choose, layer by layer, how much of an activation's outlier channels the weight after it takes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext_deploy.quantization.calibration import dequantized, linear_map
from convnext_deploy.quantization.prepare import QuantizedLayer, quantized_layers
from convnext_deploy.quantization.qparams import choose_qparams, mse_weight_qparams
from convnext_deploy.quantization.seen import SiteObserver

ALPHAS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
_SMALLEST = 1e-5  # of a channel's maximum, relative to the largest one: a dead channel has none
_CLIPPED = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # how far the range may be cut when alphas are compared


@dataclass(frozen=True)
class Smoothing:
    """What was chosen for one layer: `alpha` None means that its input stays as it is, and `scale` `(C_in,)` is 1 then.

    `error` is the squared error of the layer's output that is left on the sample, relative to that without smoothing.
    """

    alpha: float | None
    scale: Tensor
    error: float


def smoothing_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Return `activation^alpha / weight^(1 - alpha)`, divided by its geometric mean.

    Args:
        activation: `(C_in,)` largest magnitude of each channel.
        weight: `(C_in,)` largest magnitude of the weights that read the channel.
        alpha: in [0, 1]; 1 makes all channels alike and leaves it to the weight.

    Returns: `(C_in,)`, what the channels are divided by; 1 for a channel that is always 0 or that nothing reads.
    Source: Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, equation 4. The mean only keeps numbers near 1.
    """
    dead = (activation <= _SMALLEST * activation.max()) | (weight <= _SMALLEST * weight.max())
    if dead.all():
        return torch.ones_like(activation)
    log = alpha * activation.double().clamp(min=1e-30).log() - (1 - alpha) * weight.double().clamp(min=1e-30).log()
    return (log - log[~dead].mean()).masked_fill(dead, 0.0).exp().to(activation.dtype)


@torch.no_grad()
def choose_smoothing(
    model: nn.Module, inputs: Mapping[str, SiteObserver], layers: Collection[str], alpha: float | None = None
) -> dict[str, Smoothing]:
    """Choose, for each layer, the alpha whose quantized output is nearest to the float one; none is one of the choices.

    Args:
        model: prepared.
        inputs: what `calibration.observe` saw, with samples.
        layers: names of the layers whose inputs may be scaled.
        alpha: take this one for all of them and compare nothing; None: choose.
    """
    chosen = {}
    for name, layer in quantized_layers(model):
        if name in layers:
            candidates = ALPHAS if alpha is None else (alpha,)
            found = [_try(layer, inputs[name], candidate) for candidate in (None, *candidates)]
            chosen[name] = min(found, key=lambda smoothing: smoothing.error) if alpha is None else found[1]
            before = found[0].error
            chosen[name] = Smoothing(
                chosen[name].alpha, chosen[name].scale, chosen[name].error / before if before else 1.0
            )
    return chosen


def _try(layer: QuantizedLayer, seen: SiteObserver, alpha: float | None) -> Smoothing:
    assert seen.sample is not None
    low, high, x = seen.range.channel_minimum, seen.range.channel_maximum, seen.sample.values()
    weight = layer.weight.detach()
    scale = torch.ones_like(low)
    if alpha is not None:
        scale = smoothing_scale(torch.maximum(-low, high), weight.abs().transpose(0, 1).flatten(1).amax(1), alpha)
    expected = linear_map(layer, x, weight)
    x = x / scale.view(-1, *[1] * (x.ndim - 2))
    weight = weight * scale.view(1, -1, *[1] * (weight.ndim - 2))
    grid = layer.weight_quantizer.scheme
    rounded = dequantized(weight, *mse_weight_qparams(weight, grid), grid)
    scheme = layer.input_quantizer.scheme
    least, most = (low / scale).min(), (high / scale).max()
    errors = []
    for share in _CLIPPED:
        grid_of_input = dequantized(x, *choose_qparams(least * share, most * share, scheme), scheme)
        errors.append((linear_map(layer, grid_of_input, rounded) - expected).square_().sum().item())
    return Smoothing(alpha, scale, min(errors))
