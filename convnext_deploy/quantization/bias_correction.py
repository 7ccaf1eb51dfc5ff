"""Bias correction, and the walk through a network block by block that it shares with learned rounding.

A block gets its inputs in float and from the quantized blocks before it. So every change to a block is made knowing the errors that
arrive there, and it can undo a part of them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from convnext_deploy.quantization.prepare import quantized_layers, quantizers_disabled

MOST_BYTES = 1 << 27  # of the largest tensor between two blocks; four of them are held at once
_AT_ONCE = 32

Adjust = Callable[[nn.Module, Tensor, Tensor, Tensor], None]
"""Given a block, its inputs in float and behind quantized blocks, and its float outputs: change its parameters."""


def run_block(block: nn.Module, x: Tensor, *, quantized: bool) -> Tensor:
    """Return the outputs of a block, computed a few images at a time."""
    if quantized:
        return torch.cat([block(part) for part in x.split(_AT_ONCE)])
    with quantizers_disabled(block):
        return torch.cat([block(part) for part in x.split(_AT_ONCE)])


@torch.no_grad()
def walk(
    blocks: Sequence[nn.Module],
    images: Tensor,
    adjust: Adjust,
    advance: Callable[[], None] = lambda: None,
    reference: Sequence[nn.Module] | None = None,
) -> None:
    """Call `adjust` for every block that has quantized layers, from the first block to the last.

    Args:
        blocks: which, one after the other, make up the network, or its beginning; calibrated.
        images: `(N, C, H, W)`, normalized; as many are taken as `MOST_BYTES` has room for, one at least.
        adjust: changes the parameters of a block.
        advance: called after every block.
        reference: the same blocks in float, where the blocks' own weights are those of the float network no more.
    """
    with quantizers_disabled(blocks[0]):
        largest = max(images[:1].nbytes, blocks[0](images[:1]).nbytes)
    floats = arriving = images[: max(1, MOST_BYTES // largest)]
    for block, source in zip(blocks, reference or blocks, strict=True):
        expected = run_block(source, floats, quantized=False)
        if any(True for _ in quantized_layers(block)):
            adjust(block, floats, arriving, expected)
        arriving = run_block(block, arriving, quantized=True)
        floats = expected
        advance()


def correct_biases(
    blocks: Sequence[nn.Module],
    images: Tensor,
    advance: Callable[[], None] = lambda: None,
    reference: Sequence[nn.Module] | None = None,
) -> None:
    """Move every bias so that the mean of its layer's output is what it was in float, channel by channel.

    Layers are corrected one after the other, each behind those corrected before it. The arguments are those of `walk`.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
        section 4.2 and appendix D (the empirical form).
    """
    sources = dict(zip(blocks, reference or blocks, strict=True))

    def correct(block: nn.Module, floats: Tensor, arriving: Tensor, expected: Tensor) -> None:
        _correct(block, sources[block], floats, arriving)

    walk(blocks, images, correct, advance, reference)


def _correct(block: nn.Module, source: nn.Module, floats: Tensor, arriving: Tensor) -> None:
    layers = {name: layer for name, layer in quantized_layers(block) if layer.bias is not None}
    with quantizers_disabled(source):
        wanted = _output_means(source, [source.get_submodule(name) for name in layers], floats)
    for layer in layers.values():
        (found,) = _output_means(block, [layer], arriving)
        assert layer.bias is not None  # chosen so above
        layer.bias += (wanted.pop(0) - found).to(layer.bias.dtype)


def _output_means(block: nn.Module, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Return the mean output of each layer by channel, `(out,)` float64, when a block gets `x`."""
    sums = {layer: torch.zeros((), dtype=torch.float64, device=x.device) for layer in layers}
    counts = dict.fromkeys(layers, 0)

    def take(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        rows = output.flatten(0, -2) if isinstance(layer, nn.Linear) else output.permute(0, 2, 3, 1).flatten(0, 2)
        sums[layer] = sums[layer] + rows.sum(dim=0, dtype=torch.float64)
        counts[layer] += len(rows)

    hooks = [layer.register_forward_hook(take) for layer in layers]
    try:
        for part in x.split(_AT_ONCE):
            block(part)
    finally:
        for hook in hooks:
            hook.remove()
    return [sums[layer] / counts[layer] for layer in layers]
