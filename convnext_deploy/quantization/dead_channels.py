"""Weight scales of channels that LayerScale has all but switched off, so that they do not keep their layer from FP16.

FP16 has few digits of a scale below 2⁻¹⁴, so in an FP16 file the whole layer would stay in FP32 for one such channel. With the
scale raised to that, a dead channel does as little as before: what its coarser grid changes, FP16 would round off the residual
stream anyway.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from convnext_deploy.quantization.prepare import quantized_layers, quantizers_disabled

SMALLEST_IN_HALF = 2.0**-14
"""Of the numbers that FP16 has all its digits of."""
_ROUNDED_OFF = 2.0**-10  # of a value in FP16, which has 11 digits


@torch.no_grad()
def raise_dead_channels(model: nn.Module, streams: Mapping[str, str], images: Tensor) -> tuple[str, ...]:
    """Raise the weight scales below 2⁻¹⁴ of layers that add to a residual stream, where FP16 does not tell the difference.

    Args:
        model: calibrated; in evaluation mode.
        streams: name of a layer → of the module whose input its output is added to.
        images: a few, normalized `(N, C, H, W)`, on the model's device.

    Returns: names of the layers whose scales were raised.
    """
    small = {
        name: layer
        for name, layer in quantized_layers(model)
        if name in streams and (layer.weight_quantizer.scale < SMALLEST_IN_HALF).any()
    }
    if not small:
        return ()
    power = _input_power(model, {*small, *(streams[name] for name in small)}, images)
    raised = []
    for name, layer in small.items():
        # an integer grid is off by 1 / sqrt(12) of its step, in each of the products that an output sums
        noise = SMALLEST_IN_HALF * math.sqrt(layer.weight[0].numel() * power[name] / 12)
        if noise <= _ROUNDED_OFF * math.sqrt(power[streams[name]]):
            scale, zero_point = layer.weight_quantizer.qparams()
            layer.weight_quantizer.freeze(scale.clamp(min=SMALLEST_IN_HALF), zero_point)
            raised.append(name)
    return tuple(raised)


def _input_power(model: nn.Module, names: set[str], images: Tensor) -> dict[str, float]:
    """Return the mean square of what reaches each of some modules in float."""
    found: dict[str, float] = {}
    hooks = []
    for name in names:

        def take(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            found[name] = inputs[0].double().square().mean().item()

        hooks.append(model.get_submodule(name).register_forward_pre_hook(take))
    try:
        with quantizers_disabled(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def scales_kept_in_half(model: nn.Module) -> Iterator[None]:
    """After the block, in which weight scales are trained, those that FP16 had all digits of are such again."""
    scales = [layer.weight_quantizer.log2_scale for _, layer in quantized_layers(model)]
    held = [scale.detach() >= math.log2(SMALLEST_IN_HALF) for scale in scales]
    yield
    with torch.no_grad():
        for scale, before in zip(scales, held, strict=True):
            scale.copy_(torch.where(before, scale.clamp(min=math.log2(SMALLEST_IN_HALF)), scale))
