"""AdamW, its parameter groups, and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

REFERENCE_BATCH_SIZE = 4096


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


def create_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) that decays the weights of convolutions and linear layers only.

    Norms, biases, LayerScale, GRN and quantizer scales are not decayed.
    """
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), fused=True)
