"""Learned rounding (AdaRound): choose for every weight whether it is rounded up or down, to keep its block's output."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext_deploy.quantization.bias_correction import run_block, walk
from convnext_deploy.quantization.fake_quantize import FakeQuantize, spread
from convnext_deploy.quantization.prepare import quantized_layers

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # gamma and zeta of the paper
_WARM_UP = 0.2  # share of the steps without regularization
_BETA_FIRST, _BETA_LAST = 20.0, 2.0
_HELD_OUT = 4  # every so manieth image only judges


class LearnedRounding(nn.Module):
    """Stands in for the quantizer of a weight: each value is rounded down plus `h`, which is learned and ends at 0 or 1.

    `h = clamp(sigmoid(v) * 1.2 - 0.1, 0, 1)` starts at the fraction that rounding would cut off, so the weight starts in float.

    Attributes:
        v: parameter, the weight's shape.

    Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568, equation 23.
    """

    observer = None
    enabled = True

    def __init__(self, quantizer: FakeQuantize, weight: Tensor) -> None:
        super().__init__()
        self.scheme = quantizer.scheme
        scale, _ = quantizer.qparams()
        self.scale = scale.detach()
        steps = weight.detach() / spread(self.scale, weight)
        self.floor = torch.floor(steps)
        share = (steps - self.floor - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        self.v = nn.Parameter(torch.logit(share))
        self.final = False

    def h(self) -> Tensor:
        """Return what is added to the floor, in [0, 1]; 0 or 1 once `final`."""
        if self.final:
            return (self.v >= 0).to(self.v.dtype)
        return (torch.sigmoid(self.v) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on its grid, or between two values of it."""
        integers = (self.floor + self.h()).clamp(self.scheme.quant_min, self.scheme.quant_max)
        return integers * spread(self.scale, weight)

    def undecided(self, beta: float) -> Tensor:
        """Return the mean of `1 - |2 h - 1|^beta`, which is 0 when every `h` is 0 or 1 (equation 24)."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).mean()


@dataclass(frozen=True)
class RoundingSettings:
    """How the rounding of a block is learned.

    Attributes:
        steps: of Adam, per block.
        batch_size: images per step.
        learning_rate: of the rounding; scales of activations have a tenth.
        regularization: weight of `undecided`, whose exponent falls from 20 to 2; the loss itself starts at 1.
    """

    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-2
    regularization: float = 0.01


def reconstruct(
    blocks: Sequence[nn.Module],
    images: Tensor,
    settings: RoundingSettings,
    *,
    seed: int = 0,
    deadline: float = math.inf,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Learn the rounding of all weights and the scales of all activations, block by block, without labels.

    The loss is the squared difference of the block's output to the float one, with the inputs that arrive from the quantized
    blocks before it (Li et al. 2021, BRECQ, arXiv 2102.05426). A block keeps what it learned only if that is better on the
    images that it did not learn from. Weights end on their grids.

    Args:
        blocks: which, one after the other, make up the network, or its beginning; calibrated.
        images: `(N, C, H, W)`, normalized.
        settings: how each block learns.
        seed: of the order of the images.
        deadline: of `time.monotonic`; blocks that it does not leave time for stay as they are.
        advance: called after every block.

    Returns: number of blocks that became better.
    """
    generator = torch.Generator().manual_seed(seed)
    improved = 0

    def adjust(block: nn.Module, floats: Tensor, arriving: Tensor, expected: Tensor) -> None:
        nonlocal improved
        if len(arriving) < 2 or time.monotonic() > deadline:
            return
        judges = torch.arange(len(arriving)) % _HELD_OUT == _HELD_OUT - 1
        if not judges.any():
            judges[-1] = True
        before = _error(block, arriving[judges], expected[judges])
        if before == 0:
            return
        saved = {name: value.clone() for name, value in block.state_dict().items()}
        _learn(block, arriving[~judges], expected[~judges], settings, generator)
        if _error(block, arriving[judges], expected[judges]) < before:
            improved += 1
        else:
            block.load_state_dict(saved)

    walk(blocks, images, adjust, advance)
    return improved


def _error(block: nn.Module, x: Tensor, expected: Tensor) -> float:
    return (run_block(block, x, quantized=True) - expected).square().mean().item()


@torch.enable_grad()
def _learn(
    block: nn.Module, x: Tensor, expected: Tensor, settings: RoundingSettings, generator: torch.Generator
) -> None:
    layers = [layer for _, layer in quantized_layers(block)]
    trainable = {parameter: parameter.requires_grad for parameter in block.parameters()}
    for parameter in trainable:
        parameter.requires_grad_(False)
    start = _error(block, x, expected)  # of rounding to the nearest
    quantizers = [layer.weight_quantizer for layer in layers]
    roundings = [LearnedRounding(layer.weight_quantizer, layer.weight) for layer in layers]
    activations = [q.log2_scale for layer in layers for q in (layer.input_quantizer, layer.output_quantizer) if q]
    for layer, rounding in zip(layers, roundings, strict=True):
        layer.weight_quantizer = rounding  # type: ignore[assignment]  # for the time of learning
    for scale in activations:
        scale.requires_grad_(True)
    groups = [
        {"params": [rounding.v for rounding in roundings], "lr": settings.learning_rate},
        {"params": activations, "lr": settings.learning_rate / 10},
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for step in range(settings.steps):
        chosen = torch.randint(len(x), (min(settings.batch_size, len(x)),), generator=generator)
        loss = (block(x[chosen]) - expected[chosen]).square().mean() / max(start, 1e-30)
        done = step / settings.steps
        if done >= _WARM_UP:
            left = 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
            beta = _BETA_LAST + (_BETA_FIRST - _BETA_LAST) * left
            loss = loss + settings.regularization * sum(rounding.undecided(beta) for rounding in roundings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for layer, rounding, quantizer in zip(layers, roundings, quantizers, strict=True):
            rounding.final = True
            layer.weight.copy_(rounding(layer.weight))
            layer.weight_quantizer = quantizer
    for parameter, requires_grad in trainable.items():
        parameter.requires_grad_(requires_grad)
