"""The quantizers of a prepared model by name."""

from torch import nn

from convnext_deploy.quantization.fake_quantize import FakeQuantize
from convnext_deploy.quantization.prepare import quantized_layers


def activation_quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    """Return the quantizers of all inputs and outputs, under the words that messages use: `input of 'stages.0.0.pwconv1'`."""
    found: dict[str, FakeQuantize] = {}
    for name, layer in quantized_layers(model):
        found[f"input of '{name}'"] = layer.input_quantizer
        if layer.output_quantizer is not None:
            found[f"output of '{name}'"] = layer.output_quantizer
    return found
