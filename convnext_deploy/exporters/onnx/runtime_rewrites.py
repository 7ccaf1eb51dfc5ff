"""Rewrite a network for a CPU runtime: the same function in layers that the runtime has fast kernels for.

| runtime | rewrite | why |
|---|---|---|
| `openvino` | the linear layers of a block are 1×1 convolutions, and all between the norms is `(N, C, H, W)` | its convolutions \
take GELU, the quantization of the result and the residual sum into the same kernel, its matrix products the first two only; and a \
channels-last kernel reads such a tensor without a transpose |
| `openvino` | a LayerNorm reads `(N, H W, C)` | it has one kernel for three dimensions and takes four apart into several |
| `onnxruntime`, float | the linear layers of a block are 1×1 convolutions | its convolutions have a layout in blocks of \
channels, its matrix products have not |
| `onnxruntime`, INT8 | GRN's sum over the pixels is a MatMul with a vector of ones | its reductions over middle dimensions are \
slow |

What each is worth is measured by `benchmarks/latency.py`. All are exact up to the order of sums.
"""

import torch
from torch import Tensor, nn

from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.layers import ACTIVATIONS, GRN


def rewrite_for(network: ConvNeXt, runtime: str, quantized: bool) -> ConvNeXt:
    """Rewrite a network that will only be exported for a runtime, in place, and return it. Layers keep their names.

    Args:
        network: folded, without quantizers; maps `(N, C, H, W)` to logits before and after.
        runtime: `onnxruntime`, `openvino`, or any other, for which the network stays as it is.
        quantized: MatMul and Conv nodes of the graph will be INT8.
    """
    for module in list(network.modules()):
        after_pooling = module is network.head_norm or (module is network.norm and not network.feature_map)
        if runtime == "openvino" and type(module) is nn.LayerNorm and not after_pooling:
            module.__class__ = _PixelNorm
        elif runtime == "onnxruntime" and quantized and type(module) is GRN:
            module.__class__ = _MatMulGRN
        elif type(module) is Block and (runtime == "openvino" or (runtime == "onnxruntime" and not quantized)):
            _use_convolutions(module)
    return network


class _PixelNorm(nn.LayerNorm):
    """A LayerNorm of `(N, H, W, C)` that lists the pixels in one dimension."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name is nn.LayerNorm's)
        _, height, width, channels = input.shape
        return super().forward(input.reshape(-1, height * width, channels)).reshape(-1, height, width, channels)


class _ConvolutionBlock(Block):
    """A block of which both linear layers are 1×1 convolutions. It maps `(N, H, W, C)`; the transposes at its ends cancel."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        branch = self.norm(self.dwconv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        branch = ACTIVATIONS[self.activation](self.pwconv1(branch))
        branch = self.pwconv2(branch if self.grn is None else self.grn(branch))
        if self.gamma is not None:
            branch = self.gamma.view(-1, 1, 1) * branch
        return (x + branch).permute(0, 2, 3, 1)  # type: ignore[no-any-return]  # modules return Any


class _ChannelsFirstGRN(GRN):
    """GRN of `(N, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x, torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True), channels=1)


class _MatMulGRN(GRN):
    """GRN of `(N, H, W, C)` whose sum of squares is a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        squares = (x * x).reshape(-1, height * width, channels)
        gx = torch.sqrt(torch.ones(1, 1, height * width, dtype=x.dtype) @ squares).reshape(-1, 1, 1, channels)
        return self.scale(x, gx)


def _use_convolutions(block: Block) -> None:
    block.__class__ = _ConvolutionBlock
    for name in ("pwconv1", "pwconv2"):
        linear = getattr(block, name)
        convolution = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
        convolution.weight = nn.Parameter(linear.weight.detach()[:, :, None, None])
        convolution.bias = linear.bias
        setattr(block, name, convolution.eval())
    if block.grn is not None:
        block.grn.__class__ = _ChannelsFirstGRN
