"""Bias correction, and the walk through a network block by block that it shares with GPTQ rounding.

A block gets its inputs in float and from the quantized blocks before it. So every change to a block is made knowing the errors that
arrive there, and it can undo a part of them.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from convnext_deploy.quantization.prepare import quantized_layers, quantizers_disabled

MOST_BYTES = 1 << 27  # of a tensor between two blocks; four of them are held at once
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
) -> int:
    """Call `adjust` for every block that has quantized layers, from the first block to the last.

    Where tensors are large, as behind the stem, `MOST_BYTES` may not have room for all images. The others join in where there is
    more: late layers have few positions and many inputs, and need every image; the first ones have thousands of positions in each.

    Args:
        blocks: which, one after the other, make up the network, or its beginning; calibrated.
        images: `(N, C, H, W)`, normalized.
        adjust: changes the parameters of a block.
        advance: called after every block.
        reference: the same blocks in float; None: `blocks` as they are now, without their quantizers.

    Returns: of how many images the block that saw the fewest was adjusted; one at least.
    """
    sources = list(copy.deepcopy(list(blocks)) if reference is None else reference)
    floats = arriving = images[:0]
    fewest = len(images)
    for place, (block, source) in enumerate(zip(blocks, sources, strict=True)):
        floats, arriving = _join(blocks[:place], sources[:place], block, images, floats, arriving)
        expected = run_block(source, floats, quantized=False)
        if any(True for _ in quantized_layers(block)):
            fewest = min(fewest, len(arriving))
            adjust(block, floats, arriving, expected)
        arriving = run_block(block, arriving, quantized=True)
        floats = expected
        advance()
    return fewest


def _join(
    blocks: Sequence[nn.Module],
    sources: Sequence[nn.Module],
    following: nn.Module,
    images: Tensor,
    floats: Tensor,
    arriving: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return what reaches a block, in float and behind quantized blocks, with as many more images as there is room for."""
    if len(floats) == len(images):
        return floats, arriving
    one = arriving[:1] if len(arriving) else images[:1]
    largest = max(one.nbytes, run_block(following, one, quantized=True).nbytes)
    new = images[len(floats) : max(1, MOST_BYTES // largest)]
    grown, grown_arriving = [floats] if len(floats) else [], [arriving] if len(arriving) else []
    for part in new.split(_AT_ONCE) if len(new) else ():
        in_float = behind = part
        for block, source in zip(blocks, sources, strict=True):
            in_float, behind = run_block(source, in_float, quantized=False), run_block(block, behind, quantized=True)
        grown.append(in_float)
        grown_arriving.append(behind)
    return (torch.cat(grown), torch.cat(grown_arriving)) if len(new) else (floats, arriving)


def correct_biases(
    blocks: Sequence[nn.Module],
    images: Tensor,
    advance: Callable[[], None] = lambda: None,
    reference: Sequence[nn.Module] | None = None,
) -> int:
    """Move every bias so that the mean of its layer's output is what it was in float, channel by channel.

    Layers are corrected one after the other, each behind those corrected before it. Arguments and result are those of `walk`.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721,
        section 4.2 and appendix D (the empirical form).
    """
    reference = list(copy.deepcopy(list(blocks)) if reference is None else reference)
    sources = dict(zip(blocks, reference, strict=True))

    def correct(block: nn.Module, floats: Tensor, arriving: Tensor, expected: Tensor) -> None:
        correct_block(block, sources[block], floats, arriving)

    return walk(blocks, images, correct, advance, reference)


def correct_block(block: nn.Module, source: nn.Module, floats: Tensor, arriving: Tensor) -> None:
    """Move the biases of a block, given what reaches it in float, `source`, and behind quantized blocks."""
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
