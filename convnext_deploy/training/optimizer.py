"""AdamW, its parameter groups, the learning rate of every step, and the average of the weights."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

REFERENCE_BATCH_SIZE = 4096
_PARTS = 12
_BLOCK_NAME = re.compile(r"stages\.(\d+)\.(\d+)\.")
_DOWNSAMPLE_NAME = re.compile(r"downsample_layers\.(\d+)\.")


def scaled_learning_rate(base_learning_rate: float, batch_size: int) -> float:
    """Scale a learning rate given for batch 4096 linearly to `batch_size` (Goyal et al. 2017, arXiv 1706.02677)."""
    return base_learning_rate * batch_size / REFERENCE_BATCH_SIZE


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float, final_ratio: float) -> float:
    """Linear warm-up to `peak` over `warmup_steps`, then half a cosine down to `peak * final_ratio` at the last step.

    A single step after the warm-up runs at the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def layer_scales(names: Iterable[str], decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter of a ConvNeXt: layer-wise learning-rate decay.

    The blocks are cut into 12 parts of equal depth; a part's factor is `decay ** (parts that come after it)`, the last norm and
    the head have 1, the stem has the least. A downsampling layer belongs with the block that follows it.

    Args:
        names: of the network's parameters.
        decay: in (0, 1]; 1 treats all alike.

    Source: Bao et al. 2022, arXiv 2106.08254, section 3.2; 12 parts as in arXiv 2201.03545, appendix A.2.
    """
    names = list(names)
    places = [_BLOCK_NAME.match(name) for name in names]
    blocks = sorted({(int(found[1]), int(found[2])) for found in places if found})
    part_of = {block: 1 + index * _PARTS // len(blocks) for index, block in enumerate(blocks)}

    def part(name: str) -> int:
        if found := _BLOCK_NAME.match(name):
            return part_of[int(found[1]), int(found[2])]
        if found := _DOWNSAMPLE_NAME.match(name):
            return part_of.get((int(found[1]), 0), 1) if int(found[1]) else 0
        return _PARTS + 1

    return {name: decay ** (_PARTS + 1 - part(name)) for name in names}


def create_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) that decays the weights of convolutions and linear layers only.

    Norms, biases, LayerScale, GRN and quantizer scales are not decayed. Every parameter group carries `lr_scale`, the factor
    of `layer_scales`, by which the caller multiplies the learning rate of the step.
    """
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales = layer_scales([name for name, _ in model.named_parameters()], layer_decay)
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales[name] for name, _ in named} or {1.0}):
        members = [p for name, p in named if scales[name] == scale]
        for is_decayed in (True, False):
            groups.append(
                {
                    "params": [p for p in members if (id(p) in decayed) == is_decayed],
                    "weight_decay": weight_decay if is_decayed else 0.0,
                    "lr": learning_rate * scale,
                    "lr_scale": scale,
                }
            )
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), fused=True)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an average that follows the weights slowly: `average = d * average + (1 - d) * weights` after every step.

    `d` is `min(decay, (1 + step) / (10 + step))`, steps counted from 0: a short training would otherwise end with an average of
    its first weights. The average is a copy of the network in evaluation mode, without gradients.

    Source: Polyak and Juditsky 1992; arXiv 2201.03545, table 5 (decay 0.9999 for 300 epochs of ImageNet); the growing decay is
        that of TensorFlow's `ExponentialMovingAverage`.
    """

    @torch.no_grad()
    def update(averages: Any, weights: Any, count: Tensor | int) -> None:
        least = int(count) / (int(count) + 9)
        torch._foreach_lerp_(averages, weights, 1.0 - min(decay, least))

    average = AveragedModel(model, multi_avg_fn=update)
    average.module.requires_grad_(False).eval()
    average.n_averaged.fill_(1)  # the first weights count, instead of being replaced by those after the first step
    return average
